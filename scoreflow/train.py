"""Training: in memory with `fit`, or in a folder that can be resumed with `train`."""

import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scoreflow import data, draw
from scoreflow.evaluators.error_curve import error_curve
from scoreflow.experiment import INIT, SAMPLE, TRAIN, VALIDATE, Experiment
from scoreflow.models import LATENT, MAIN, count_params
from scoreflow.objectives.protocols import Objective
from scoreflow.optimizers import optimizer as default_optimizer
from scoreflow.runs import checkpoint, parallel, report, workdir
from scoreflow.runs.best import Best
from scoreflow.runs.errors import UserError
from scoreflow.step import (
    Batch,
    TrainState,
    check_finite,
    compile_dispatch,
    init_state,
    make_train_step,
    state_of,
)
from scoreflow.types import Check, Count, CountOrZero, Flag, Fraction, Key, Params

Measure = Callable[[Params], float]
"""A number for averaged parameters, of which the lower is the better."""

_MEASURES = ("validation", "frechet")
_BEST = "a tuple of measures: " + ", ".join(_MEASURES)


class WarmStart(NamedTuple):
    """A run whose averaged parameters training begins with.

    Attributes:
      folder: of that run.
      same: settings that must be the same there, by what their dotted names begin with.
      defaults: values of settings that a run of an older version does not have, by dotted name.
    """

    folder: Path
    same: tuple[str, ...] = ()
    defaults: Mapping[str, object] = {}


class TrainOptions(NamedTuple):
    """How to train. Intervals are in steps, and multiples of `steps_per_dispatch`.

    Attributes:
      steps: Number of optimizer steps; 0 only fits what needs no steps.
      batch_size: Examples per step, over all devices and microbatches.
      grad_accum: Microbatches that a batch is cut into, to save memory.
      steps_per_dispatch: Steps inside one compiled program.
      fsdp: Each device holds a share of parameters, averages and moments; otherwise each holds all of them.
      ema_decay: Decay of the averaged parameters that evaluation and sampling use.
      skip: Steps in a row that may be skipped because they are not finite; 0 stops at the first.
      log_every: Steps between lines of metrics.jsonl; 0 for none but the last.
      validate_every: Steps between validations; 0 for none but the last.
      checkpoint_every: Steps between checkpoints; 0 for none but the last.
      sample_every: Steps between sample grids; 0 for none but the last.
      keep: Number of newest checkpoints that are kept.
      best: Measures whose best checkpoint is kept as well: validation (the loss on test data), frechet (of samples).
      optimizer: the optax transformation; None for `optimizers.optimizer` at its defaults.
      flip: whether training images are mirrored at random.
      num_samples: images in a sample grid.
      sample_batch: examples per sampling call.
      warm_start: the run that training begins with; None for fresh parameters.
      measures: by name, (experiment, options) -> a measure for `best`, besides `validation`.
    """

    steps: CountOrZero = 1000
    batch_size: Count = 128
    grad_accum: Count = 1
    steps_per_dispatch: Count = 1
    fsdp: Flag = False
    ema_decay: Fraction = 0.999
    skip: CountOrZero = 0
    log_every: CountOrZero = 20
    validate_every: CountOrZero = 200
    checkpoint_every: CountOrZero = 500
    sample_every: CountOrZero = 0
    keep: Count = 3
    best: Annotated[tuple[str, ...], Check(tuple, lambda v: set(v) <= set(_MEASURES), _BEST)] = ()
    optimizer: optax.GradientTransformation | None = None
    flip: bool = False
    num_samples: int = 100
    sample_batch: int = 100
    warm_start: WarmStart | None = None
    measures: Mapping[str, Callable[..., Measure]] = {}


# --- in memory --------------------------------------------------------------------------------------------------------


def fit(
    objective: Objective,
    params: Params,
    optimizer: optax.GradientTransformation,
    batches: Iterable[Batch],
    *,
    key: Key,
    ema_decay: float = 0.999,
    grad_accum: int = 1,
    skip: int = 0,
    callback: Callable[[int, dict[str, float]], None] | None = None,
) -> TrainState:
    """Minimizes an objective over batches, in memory: no folder, no config.

    Args:
      objective: (params, key, batch, *, train, step) -> (scalar, {term: scalar}); see `objectives`.
      params: parameters to begin with; they are not modified.
      optimizer: an optax transformation.
      batches: one for each step, {"x": [B, ...]} and, where there are labels, {"label": [B]}.
      key: PRNG key; the noise of a step depends on it and on the step's number alone.
      ema_decay: decay of the averaged parameters.
      grad_accum: microbatches that each batch is cut into.
      skip: steps in a row that may be skipped because they are not finite; 0 stops at the first.
      callback: called with (step, {term: number}) after every step.

    Returns:
      The state after the last batch; `ema_params` are the averaged parameters.

    Raises:
      RunError: if the loss or the gradient stops being finite; it names the step.
    """
    step = make_train_step(objective, optimizer, key, ema_decay=ema_decay, grad_accum=grad_accum, skip=skip)
    dispatch, skipped = compile_dispatch(step, 1), 0
    state = parallel.replicate(jax.tree.map(jnp.copy, state_of(params, optimizer)))
    for i, batch in enumerate(batches):
        parallel.check_divides(len(batch["x"]) // grad_accum, "examples of a batch / grad_accum")
        on_device = parallel.shard(jax.tree.map(lambda leaf: np.asarray(leaf)[None], dict(batch)), axis=1)
        state, metrics = dispatch(state, on_device)
        metrics = parallel.gather(metrics)
        skipped = check_finite(metrics, i, allowed=skip, before=skipped)
        if callback is not None:
            callback(i + 1, {name: float(value[0]) for name, value in metrics.items()})
    return state


def fit_experiment(experiment: Experiment, options: TrainOptions, params: Params | None = None) -> Params:
    """Trains an experiment in memory, from `params` (which stay) or from scratch; returns the averaged parameters.

    From scratch, what is fitted to the training data before training begins is fitted first, as in `train`.
    """
    optimizer = options.optimizer or default_optimizer(options.steps)
    state = init_state(experiment.init, optimizer, experiment.key(INIT))
    if params is None:
        state = _fit_groups(experiment, state)
    else:  # copied twice, since a dispatch reuses the memory of its state
        state = state._replace(params=jax.tree.map(jnp.copy, params), ema_params=jax.tree.map(jnp.copy, params))
    dispatch, skipped = dispatch_of(experiment, options), 0
    for first, batch in batches_of(experiment, options, 0):
        state, metrics = dispatch(state, batch)
        skipped = check_finite(parallel.gather(metrics), first, allowed=options.skip, before=skipped)
    return state.ema_params


# --- in a folder ------------------------------------------------------------------------------------------------------


def dispatch_of(experiment: Experiment, options: TrainOptions, layout=None) -> Callable:
    """The jitted dispatch of an experiment; `layout` as in `compile_dispatch`."""
    optimizer = options.optimizer or default_optimizer(options.steps)
    keywords = {"ema_decay": options.ema_decay, "followed": (LATENT,)}
    keywords |= {"grad_accum": options.grad_accum, "skip": options.skip}
    step = make_train_step(experiment.objective, optimizer, experiment.key(TRAIN), **keywords)
    return compile_dispatch(step, options.steps_per_dispatch, layout)


def batches_of(experiment: Experiment, options: TrainOptions, start: int) -> Iterator[tuple[int, dict]]:
    """(first step, batches of one dispatch on the devices), for every dispatch from `start` on."""
    for step in range(start, options.steps, options.steps_per_dispatch):
        stacked = [
            data.batch(experiment.data.train, experiment.seed, step + i, options.batch_size, flip=options.flip)
            for i in range(options.steps_per_dispatch)
        ]
        yield step, parallel.shard(jax.tree.map(lambda *leaves: np.stack(leaves), *stacked), axis=1)


def _due(interval: int, step: int, last: int) -> bool:
    return step == last or (interval > 0 and step % interval == 0)


def train(experiment: Experiment, options: TrainOptions, folder: Path) -> TrainState:
    """Trains to `options.steps`, going on from the newest whole checkpoint in `folder` if there is one.

    Returns:
      The state after the last step.

    Raises:
      RunError: if the loss or the gradient stops being finite; it names the step and the last good checkpoint.
    """
    began = time.monotonic()
    parallel.check_divides(options.batch_size // options.grad_accum, "training.batch_size / training.grad_accum")

    # --- state: fresh, or the newest whole checkpoint -----------------------------------------------------------------
    checkpoints = workdir.checkpoints(folder)
    state, start, fresh, layout = _begin(experiment, options, checkpoints)
    log = report.Log(folder, start)
    report.say(
        f"{experiment.name}: {len(experiment.data.train.x)} training examples of shape {experiment.data.shape}, "
        f"{count_params(state.params):,} parameters, {parallel.describe()}"
    )
    if start >= options.steps and not fresh:
        advice = "; raise training.steps to train on" if options.steps else ""
        report.say(f"step {start} is there already{advice}")

    # --- compiled parts -----------------------------------------------------------------------------------------------
    dispatch = dispatch_of(experiment, options, layout)
    for _, batch in itertools.islice(batches_of(experiment, options, start), 1):
        dispatch, memory = parallel.compile_for(dispatch, state, batch)
        report.say(f"memory of each device: {memory}")
    validate = validator(experiment, options)
    best = Best(folder, options.best, start)
    makers = {"validation": validator, **options.measures}
    if missing := set(options.best) - makers.keys():
        raise UserError(f"training.best: there is no measure {', '.join(missing)} among TrainOptions.measures")
    measures = {name: makers[name](experiment, options) for name in options.best}
    draw_samples = draw.make_draw(experiment, options.sample_batch)

    def show(params, step):
        x = draw_samples(params, experiment.key(SAMPLE), options.num_samples).x
        draw.write_picture(experiment, x, folder / "samples" / f"{step}.png")
        if (pixels := draw.picture(experiment, x)) is not None:
            log.image(step, "samples", pixels)

    # --- loop ---------------------------------------------------------------------------------------------------------
    recent: list[dict] = []
    skipped = 0  # steps in a row
    clock = time.monotonic()
    batches = data.prefetch(batches_of(experiment, options, start))
    steps, per_item = options.steps, options.steps_per_dispatch
    for first, batch in report.progress(batches, total=steps, initial=start, per_item=per_item):
        state, metrics = dispatch(state, batch)
        metrics = parallel.gather(metrics)
        skipped = check_finite(metrics, first, checkpoints, allowed=options.skip, before=skipped)
        recent.append(metrics)
        step = first + per_item
        if first == start:
            report.say(f"first step after {time.monotonic() - began:.1f} s")
        if _due(options.log_every, step, steps):
            means = {name: _mean_of_finite(np.concatenate([m[name] for m in recent])) for name in metrics}
            if options.skip:
                means["skipped"] = int(sum(m["skipped"].sum() for m in recent))
            done, now = len(recent) * per_item, time.monotonic()
            log.scalars(step, **means, examples_per_second=done * options.batch_size / (now - clock))
            recent, clock = [], now
        if _due(options.validate_every, step, steps):
            log.scalars(step, validation_loss=validate(state.ema_params))
        if _due(options.checkpoint_every, step, steps):
            checkpoint.save(checkpoints, step, state, keep=options.keep)
            for name, measure in measures.items():
                value = measure(state.ema_params)
                if best.offer(name, step, value, state.ema_params):
                    log.scalars(step, **{f"best_{name}": value})
        if step < steps and _due(options.sample_every, step, steps):
            show(state.ema_params, step)

    if steps == 0 and fresh:  # all there was to learn was fitted
        checkpoint.save(checkpoints, 0, state, keep=options.keep)

    # --- what a person looks at, also where the run was killed after its last checkpoint ------------------------------
    last = max(start, steps)
    show(state.ema_params, last)
    _finish(experiment, state.ema_params, folder, last, log, time.monotonic() - began)
    return state


def _begin(experiment: Experiment, options: TrainOptions, checkpoints: Path) -> tuple[TrainState, int, bool, object]:
    """(state, its step, whether it is fresh, its layout): restored, warm-started or new."""
    optimizer = options.optimizer or default_optimizer(options.steps)
    state = init_state(experiment.init, optimizer, experiment.key(INIT), fsdp=options.fsdp)
    layout = parallel.layout(state, divided=options.fsdp)
    start = checkpoint.latest(checkpoints, warn=report.warn)
    if parallel.is_main():
        checkpoint.quarantine(checkpoints, start)
    parallel.barrier("quarantine")
    if start is not None:
        state = checkpoint.restore(checkpoints, start, state)
        report.say(f"resuming at step {start}")
    elif options.warm_start is not None:
        state = _warm_start(experiment, state, options.warm_start)
    if start is None:
        state = parallel.place(_fit_groups(experiment, state), layout)
    return state, start or 0, start is None, layout


def validator(experiment: Experiment, options: TrainOptions) -> Measure:
    """ema_params -> the objective on test data, with the same batches, times and noise at every call."""
    size = options.batch_size // options.grad_accum
    objective = parallel.jit(
        lambda params, key, batch: experiment.objective(params, key, batch, train=False)[0],
        out_shardings=parallel.replicated(),
    )
    n_batches = max(1, min(4, len(experiment.data.test.x) // size))

    def validate(params):
        losses = []
        for i in range(n_batches):
            batch = parallel.shard(data.batch(experiment.data.test, experiment.seed, i, size))
            losses.append(float(objective(params, jax.random.fold_in(experiment.key(VALIDATE), i), batch)))
        return float(np.mean(losses))

    return validate


def _warm_start(experiment: Experiment, state: TrainState, source: WarmStart) -> TrainState:
    """The state with the averaged parameters of another run's newest checkpoint, as parameters and as their average.

    These are the groups that both runs have by name; all parameters where neither is in groups, and the score network's
    where only the other is not.

    Raises:
      UserError: if there is none, its network is another, or its settings are.
    """
    folder, ours = source.folder, state.params
    step = workdir.newest(folder)
    workdir.check_same(
        folder, experiment.config, source.same, at_most=("process.horizon",), defaults=dict(source.defaults)
    )
    if names := workdir.components(folder, step) & ours.keys():
        params = {**ours, **workdir.averaged(folder, step, {name: ours[name] for name in names})}
    elif MAIN in ours:
        params = {**ours, MAIN: workdir.averaged(folder, step, ours[MAIN])}
    else:
        params = workdir.averaged(folder, step, ours)
    report.say(f"beginning with the averaged parameters of {folder}, step {step}")
    return state._replace(params=params, ema_params=jax.tree.map(jnp.copy, params))


def _fit_groups(experiment: Experiment, state: TrainState) -> TrainState:
    """The state with what is fitted to the training data: all there is to learn of it, or where its training begins."""
    fits = experiment.model.fits
    if fits:  # which look at parameters on the host too, so whole
        whole = parallel.layout(state.params, divided=False)
        state = state._replace(params=parallel.place(state.params, whole))
    for i, (name, fit_group) in enumerate(fits.items()):
        began = time.monotonic()
        key = jax.random.fold_in(experiment.key(INIT), 1 + i)
        group = parallel.replicate(jax.device_get(fit_group(state.params, key)))
        report.say(f"fitted {name} in {time.monotonic() - began:.1f} s")
        params, ema_params = state.params | {name: group}, state.ema_params | {name: jax.tree.map(jnp.copy, group)}
        state = state._replace(params=params, ema_params=ema_params)
    return state


def _mean_of_finite(values: np.ndarray) -> float:
    """Mean over the steps that were not skipped; NaN if all were."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def _finish(experiment: Experiment, params: Params, folder: Path, step: int, log: report.Log, seconds: float) -> None:
    """Plots, and the words a run ends with."""
    plots = folder / "loss_by_log_snr.png"
    report.plot_noise_error(plots, *error_curve(experiment, params))
    if records := report.read_metrics(folder):
        plots = folder / "loss.png"
        report.plot_loss(plots, records)
    draw.write_trajectory(experiment, params, folder / "trajectory.png", experiment.key(SAMPLE))
    log.close()
    if peak := parallel.peak_memory():
        report.say(f"most memory in use on a device: {peak / 2**20:,.0f} MiB")
    report.say(f"trained to step {step} in {seconds:.0f} s")
    report.say(f"samples: {folder / 'samples' / f'{step}.png'}   plots: {plots} and in its folder")
    program = "scoreflow" if Path(sys.argv[0]).name == "scoreflow" else "python main.py"
    report.say(f"next:    {program} --config={experiment.name} --workdir={folder} --mode=eval")
