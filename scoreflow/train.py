"""Training: in memory with `fit`, or in a folder that can be resumed with `train`."""

import time
from collections.abc import Callable, Iterable, Mapping, Sized
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scoreflow import data, draw
from scoreflow.begin import begin, fit_groups, say_if_stretched
from scoreflow.data import placeholder
from scoreflow.dispatch import Dispatcher, Measure, TrainOptions, batches_of
from scoreflow.experiment import INIT, Experiment
from scoreflow.finish import Pictures, end
from scoreflow.models import count_params
from scoreflow.objectives.protocols import Objective
from scoreflow.optimizers import optimizer as default_optimizer
from scoreflow.runs import checkpoint, cost, lock, parallel, report, stop, workdir
from scoreflow.runs.best import Best
from scoreflow.runs.errors import UserError
from scoreflow.runs.log import Log
from scoreflow.runs.meter import Latest, Meter
from scoreflow.step import (
    Batch,
    TrainState,
    check_finite,
    compile_dispatch,
    init_state,
    make_train_step,
    state_of,
    validator,
)
from scoreflow.trained import as_key
from scoreflow.types import Key, Params

_SHARE, _LEAST = 0.1, 10.0  # of the time of a run, and seconds, that each picture at its end may take
_LEFT = 0.1  # of the data at the horizon, in standard deviations of the noise


# --- in memory --------------------------------------------------------------------------------------------------------


def fit(
    objective: Objective,
    params: Params,
    optimizer: optax.GradientTransformation,
    batches: Iterable[Batch],
    *,
    key: Key | int,
    ema_decay: float = 0.999,
    grad_accum: int = 1,
    skip: int = 0,
    callback: Callable[[int, dict[str, float]], None] | None = None,
    progress: bool | int = False,
) -> TrainState:
    """Minimizes an objective over batches, in memory: no folder, no config.

    Args:
      objective: (params, key, batch, *, train, step) -> (scalar, {term: scalar}); see `objectives`.
      params: parameters to begin with; they are not modified.
      optimizer: an optax transformation.
      batches: one for each step, {"x": [B, ...]} and, where there are labels, {"label": [B]}.
      key: PRNG key, or its seed; the noise of a step depends on it and on the step's number alone.
      ema_decay: decay of the averaged parameters.
      grad_accum: microbatches that each batch is cut into.
      skip: steps in a row that may be skipped because they are not finite; 0 stops at the first.
      callback: called with (step, {term: number}) after every step.
      progress: whether to show a bar, on a terminal or in a notebook; the number of steps, for the time left, where
        `batches` have no length.

    Returns:
      The state after the last batch; `ema_params` are the averaged parameters.

    Raises:
      RunError: if the loss or the gradient stops being finite; it names the step.
      TypeError: if a batch is no mapping with "x".
      ValueError: if `grad_accum` does not divide a batch.

    Examples:
      >>> import jax, jax.numpy as jnp, numpy as np, optax, scoreflow
      >>> def objective(params, key, batch, *, train, step=None):
      ...     loss = jnp.mean((batch["x"] - params) ** 2)  # least at the mean of x
      ...     return loss, {"square": loss}
      >>> x = np.random.default_rng(0).normal(loc=0.5, size=(300, 256, 2)).astype(np.float32)
      >>> batches = ({"x": each} for each in x)
      >>> state = scoreflow.fit(objective, jnp.zeros(()), optax.adam(0.02), batches, key=jax.random.key(0))
      >>> round(float(state.ema_params), 1)
      0.5
    """
    step = make_train_step(objective, optimizer, as_key(key), ema_decay=ema_decay, grad_accum=grad_accum, skip=skip)
    dispatch, skipped, latest = compile_dispatch(step, 1), 0, Latest()
    state = parallel.replicate(jax.tree.map(jnp.copy, state_of(params, optimizer)))
    for i, batch in enumerate(_shown(batches, progress, latest.words)):
        if not isinstance(batch, Mapping) or "x" not in batch:
            raise TypeError(f'a batch must be a mapping such as {{"x": array}}, not {type(batch).__name__}')
        if len(batch["x"]) % grad_accum:
            raise ValueError(f"grad_accum = {grad_accum} does not divide a batch of {len(batch['x'])}")
        parallel.check_divides(len(batch["x"]) // grad_accum, "examples of a batch / grad_accum")
        on_device = parallel.shard(jax.tree.map(lambda leaf: np.asarray(leaf)[None], dict(batch)), axis=1)
        state, metrics = dispatch(state, on_device)
        metrics = parallel.gather(metrics)
        latest.add(metrics.get("loss", np.empty(0)))
        skipped = check_finite(metrics, i, allowed=skip, before=skipped)
        if callback is not None:
            callback(i + 1, {name: float(value[0]) for name, value in metrics.items()})
    return state


def _shown(batches: Iterable[Batch], progress: bool | int, note: Callable[[], str]) -> Iterable[Batch]:
    """Batches behind a bar where one is asked for."""
    if not progress:
        return batches
    total = None if progress is True else int(progress)
    total = len(batches) if total is None and isinstance(batches, Sized) else total
    return report.progress(batches, total=total, note=note)


def fit_experiment(experiment: Experiment, options: TrainOptions, params: Params | None = None) -> Params:
    """Trains an experiment in memory, from `params` (which stay) or from scratch; returns the averaged parameters.

    From scratch, what is fitted to the training data before training begins is fitted first, as in `train`.
    """
    optimizer = options.optimizer or default_optimizer(options.steps)
    state = init_state(experiment.init, optimizer, experiment.key(INIT))
    if params is None:
        state = fit_groups(experiment, state)
    else:  # copied twice, since a dispatch reuses the memory of its state
        state = state._replace(params=jax.tree.map(jnp.copy, params), ema_params=jax.tree.map(jnp.copy, params))
    dispatch, skipped = Dispatcher(experiment, options), 0
    for first, batch in batches_of(experiment, options, 0):
        state, metrics = dispatch(state, batch)
        skipped = check_finite(parallel.gather(metrics), first, allowed=options.skip, before=skipped)
    return state.ema_params


# --- in a folder ------------------------------------------------------------------------------------------------------


def _due(interval: int, first: int, step: int, last: int) -> bool:
    """Whether a multiple of the interval, or the last step, lies among the steps from `first` to `step`."""
    return step == last or (interval > 0 and step // interval > first // interval)


def _size(item: tuple[int, dict]) -> int:
    """Steps in one dispatch."""
    return len(item[1]["x"])


def train(experiment: Experiment, options: TrainOptions, folder: Path) -> TrainState:
    """Trains to `options.steps`, going on from the newest whole checkpoint in `folder` if there is one.

    Ctrl-C or a SIGTERM stops it after the step that it is at, which is saved.

    Returns:
      The state after the last step.

    Raises:
      KeyboardInterrupt: after such a signal.
      RunError: if the loss or the gradient stops being finite; it names the step and the last good checkpoint.
      UserError: if another process is training in the folder, or another experiment has been trained in it.
    """
    with lock.held(folder, "training"), stop.listening() as stopping:
        workdir.check_same_experiment(folder, experiment.config)
        parallel.check_divides(options.batch_size // options.grad_accum, "training.batch_size / training.grad_accum")
        parallel.check_batch(options.batch_size, experiment.data.shape, "training.batch_size", number=1)  # at least
        return _train(experiment, options, folder, stopping)


def _train(experiment: Experiment, options: TrainOptions, folder: Path, stopping: stop.Stopping) -> TrainState:
    began = time.monotonic()

    # --- state: fresh, or the newest whole checkpoint -----------------------------------------------------------------
    checkpoints = workdir.checkpoints(folder)
    optimizer = options.optimizer or default_optimizer(options.steps)
    how = {"fsdp": options.fsdp, "warm_start": options.warm_start}
    state, start, fresh, layout = begin(experiment, optimizer, checkpoints, **how)
    _announce(experiment, options, folder, state, start, fresh)

    # --- compiled parts -----------------------------------------------------------------------------------------------
    dispatch = Dispatcher(experiment, options, layout, report.say)
    validate, measures = validator(experiment, options.batch_size), _measures(experiment, options)
    best = Best(folder, options.best, start, {k: getattr(m, "depends_on", {}) for k, m in measures.items()})
    log = Log(folder, start)  # whose files are there from the first step on, so that a failed start leaves nothing
    pictures = Pictures(experiment, folder, log, options.sample_batch, options.num_samples)
    meter = Meter(log, start, options.batch_size, lines=options.log_every > 0, skip=options.skip > 0)
    skipped, steps = 0, options.steps  # skipped in a row

    # --- loop ---------------------------------------------------------------------------------------------------------
    batches = data.prefetch(batches_of(experiment, options, start))
    for first, batch in report.progress(batches, total=steps, initial=start, size=_size, note=meter.latest.words):
        begun = time.monotonic()
        state, metrics = dispatch(state, batch)
        metrics, step = parallel.gather(metrics), first + len(batch["x"])
        meter.add(metrics, time.monotonic() - begun)
        skipped = check_finite(metrics, first, checkpoints, allowed=options.skip, before=skipped)
        if first == start:
            report.say(f"first step after {time.monotonic() - began:.1f} s")
            _record(experiment, options, log, fresh)
            _record_cost(folder, dispatch, state, batch)
            stopping.begin()  # there is something to save now
        if _due(options.log_every, first, step, steps):
            meter.write(step)
        if _due(options.validate_every, first, step, steps):
            meter.validated(step, validate(state.ema_params))
        if stopping.asked or _due(options.checkpoint_every, first, step, steps):
            checkpoint.save(checkpoints, step, state, keep=options.keep)
            stopping.obey()
            for name, measure in measures.items():
                value = measure(state.ema_params)
                if best.offer(name, step, value, state.ema_params):
                    log.scalars(step, **{f"best_{name}": value})
        if step < steps and _due(options.sample_every, first, step, steps):
            pictures.samples(state.ema_params, step)
    stopping.end()

    if start >= steps:
        _record(experiment, options, log, fresh)
        _record_cost(folder, dispatch, state, next(batches_of(experiment, options, 0), (0, None))[1])
    if steps == 0 and fresh:  # all there was to learn was fitted
        checkpoint.save(checkpoints, 0, state, keep=options.keep)

    # --- what a person looks at, also where the run was killed after its last checkpoint ------------------------------
    seconds, last, written = time.monotonic() - began, max(start, steps), []
    if options.pictures:  # a step is about three evaluations of the network for every example of its batch
        one = None if meter.pace is None else meter.pace / (3 * options.batch_size)
        written = pictures.at_the_end(state.ema_params, last, budget=max(_SHARE * seconds, _LEAST), evaluation=one)
    log.close()
    end(experiment, folder, last, seconds if fresh or start < steps else None, written)
    return state


def _announce(
    experiment: Experiment, options: TrainOptions, folder: Path, state: TrainState, start: int, fresh: bool
) -> None:
    """What is trained on what, and what a person should know of it."""
    report.say(f"{experiment.name}: {count_params(state.params):,} parameters, {parallel.describe()}")
    for line in experiment.facts():
        report.say(f"data: {line}")
    process, t_min = experiment.model.process, experiment.model.t_min
    ends = [f"{float(process.log_snr(t)):.1f} at t = {float(t):.4g}" for t in (t_min, process.horizon)]
    report.say(f"process: log-SNR from {' to '.join(ends)}, where alpha = {float(process.alpha(process.horizon)):.2g}")
    left, family = experiment.signal_left(), experiment.model.family
    if left > _LEFT and family.init is None:
        words = f"{family.advice}, or a larger process.horizon"
        report.say(f"process: at t = T the data are still {left:.2g} times as large as the noise; {words}")
    before = workdir.stored_settings(folder).get("training.steps")
    if 0 < start < options.steps and before is not None:
        say_if_stretched(experiment.config, start, before, options.steps)
    if start >= options.steps and not fresh:
        report.say(f"step {start} is there already" + ("; raise training.steps to train on" if options.steps else ""))


def _record(experiment: Experiment, options: TrainOptions, log: Log, fresh: bool) -> None:
    """Opens the log, and writes what is kept of the settings and the data, once there is something to keep."""
    log.open()
    if fresh and options.pictures and draw.write_examples(experiment, log.workdir / "data.png"):
        report.say(f"data: some of them are in {log.workdir / 'data.png'}")
    workdir.record(log.workdir, experiment.config, name=experiment.name, data=placeholder.record(experiment.data))


def _record_cost(folder: Path, dispatch: Dispatcher, state: TrainState, batch: dict | None) -> None:
    """Writes what a step on such a batch costs, unless nothing was compiled and it is known from before.

    Runs of older versions do not know it. Without a batch there are no steps.
    """
    if dispatch.memory is None and cost.path(folder).is_file():
        return
    operations = None if batch is None else dispatch.operations(state, batch)
    memory = None if dispatch.memory is None else sum(dispatch.memory)
    cost.write(folder, cost.Cost(count_params(state.params), operations, memory))


def _measures(experiment: Experiment, options: TrainOptions) -> dict[str, Measure]:
    """Those of which the best checkpoint is kept, by name."""
    makers = {"validation": lambda experiment: validator(experiment, options.batch_size), **options.measures}
    if missing := set(options.best) - makers.keys():
        raise UserError(f"training.best: there is no measure {', '.join(missing)} among TrainOptions.measures")
    return {name: makers[name](experiment) for name in options.best}
