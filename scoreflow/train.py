"""Training: the step as a pure function, and the loop around it."""

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scoreflow import data, sample
from scoreflow.evaluators.density import error_by_level
from scoreflow.experiment import INIT, SAMPLE, TRAIN, VALIDATE, Experiment
from scoreflow.models import MAIN, count_params
from scoreflow.runs import checkpoint, parallel, report, workdir
from scoreflow.runs.best import Best
from scoreflow.runs.errors import RunError


class TrainPlan(NamedTuple):
    """How to train. Intervals are in steps, and multiples of `steps_per_dispatch`.

    Attributes:
      steps: optimizer steps in all.
      batch_size: examples per step, over all devices and accumulated parts.
      grad_accum: parts that a batch is cut into, to fit memory.
      skip: steps in a row that may be skipped because their loss or gradient is not finite; 0 stops at the first.
      init_from: folder of a run whose averaged parameters training begins with; None for the network's own.
      init_same: settings, by what their names begin with, that must be the same there.
      steps_per_dispatch: steps inside one compiled program.
      optimizer: the optax transformation, with clipping and schedule.
      ema_decay: of the averaged parameters that evaluation and sampling use.
      followed: parts of the parameters that are not averaged: the newest are used.
      flip: mirror training images at random.
      log_every, validate_every, checkpoint_every, sample_every: intervals; 0 for never (and always at the end).
      keep: checkpoints that stay.
      best: measures whose best checkpoint is kept as well: name -> (experiment) -> (averaged parameters -> number).
      num_samples: images in a sample grid.
      sample_batch: examples per sampling call.
      fsdp: whether each device holds a part of the state, or all of it.
    """

    steps: int
    batch_size: int
    grad_accum: int
    skip: int
    init_from: Path | None
    init_same: tuple[str, ...]
    steps_per_dispatch: int
    optimizer: optax.GradientTransformation
    ema_decay: float
    followed: tuple[str, ...]
    flip: bool
    log_every: int
    validate_every: int
    checkpoint_every: int
    sample_every: int
    keep: int
    best: dict[str, Callable]
    num_samples: int
    sample_batch: int
    fsdp: bool


class TrainState(NamedTuple):
    """What a step needs from the one before: `step` int32, `params`, their average `ema_params`, `opt_state`."""

    step: jax.Array
    params: dict
    ema_params: dict
    opt_state: optax.OptState


def init_state(experiment: Experiment, optimizer: optax.GradientTransformation, *, divided: bool = False) -> TrainState:
    """The state before the first step, whole on every device or `divided` over them."""

    def make(key):
        params = experiment.network.init(key, (1, *experiment.shape))
        return TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params))

    key = experiment.key(INIT)
    layout = parallel.layout(jax.eval_shape(make, key), divided=divided)
    return parallel.jit(make, once=True, out_shardings=layout)(key)


def ema_decay_at(step: jax.Array, decay: float) -> jax.Array:
    """The decay at a step: small at first, so that the average forgets the initial parameters."""
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def make_train_step(
    objective: Callable,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    *,
    ema_decay: float,
    followed: tuple[str, ...] = (),
    grad_accum: int = 1,
    skip: int = 0,
) -> Callable:
    """Makes train_step(state, batch) -> (state, {name: scalar}).

    Its randomness is a function of (key, state.step). With `grad_accum` = a, the batch is cut into a equal parts, each
    with a key of its own, whose gradients are averaged before the one update. With `skip`, a step whose loss or
    gradient is not finite changes nothing but `state.step`, and its metrics say `skipped` = 1.
    """

    def gradients(params, key, batch, step):
        def loss(params, key, batch):
            return objective(params, key, batch, train=True, step=step)

        grad = jax.value_and_grad(loss, has_aux=True)
        if grad_accum == 1:
            (_, terms), grads = grad(params, key, batch)
            return grads, terms
        parts = jax.tree.map(lambda leaf: leaf.reshape(grad_accum, -1, *leaf.shape[1:]), batch)

        def one(inputs):
            (_, terms), grads = grad(params, *inputs)
            return grads, terms

        def add(total, inputs):
            return jax.tree.map(jnp.add, total, one(inputs)), None

        keys = jax.random.split(key, grad_accum)
        first, rest = (jax.tree.map(lambda leaf, i=i: leaf[i], (keys, parts)) for i in (0, slice(1, None)))
        total, _ = jax.lax.scan(add, one(first), rest)
        return jax.tree.map(lambda leaf: leaf / grad_accum, total)

    def train_step(state, batch):
        grads, terms = gradients(state.params, jax.random.fold_in(key, state.step), batch, state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        pace = 1.0 - ema_decay_at(state.step, ema_decay)
        # a number that never moves stays the same to the last digit, as it would not in a weighted sum
        ema_params = jax.tree.map(lambda ema, new: ema + pace * (new - ema), state.ema_params, params)
        ema_params |= {name: params[name] for name in followed if name in params}
        after, metrics = (params, ema_params, opt_state), {**terms, "grad_norm": optax.tree.norm(grads)}
        if skip:
            finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
            after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, tuple(state[1:]))
            metrics["skipped"] = 1.0 - finite
        return TrainState(state.step + 1, *after), metrics

    return train_step


def compile_dispatch(train_step: Callable, steps_per_dispatch: int, layout=None) -> Callable:
    """Jits (state, batches [K, B, ...]) -> (state, metrics [K]); the state's memory is reused.

    Args:
      layout: the state's shardings; None for all of it on every device.
    """

    def dispatch(state, batches):
        if steps_per_dispatch == 1:
            state, metrics = train_step(state, jax.tree.map(lambda leaf: leaf[0], batches))
            return state, jax.tree.map(lambda leaf: leaf[None], metrics)
        return jax.lax.scan(train_step, state, batches)

    whole = parallel.replicated()
    return parallel.jit(dispatch, donate_argnums=0, out_shardings=(whole if layout is None else layout, whole))


def dispatch_of(experiment: Experiment, plan: TrainPlan, layout=None) -> Callable:
    """The jitted dispatch of an experiment under a plan; `layout` as in `compile_dispatch`."""
    options = {"ema_decay": plan.ema_decay, "followed": plan.followed}
    options |= {"grad_accum": plan.grad_accum, "skip": plan.skip}
    step = make_train_step(experiment.objective, plan.optimizer, experiment.key(TRAIN), **options)
    return compile_dispatch(step, plan.steps_per_dispatch, layout)


def batches(experiment: Experiment, plan: TrainPlan, start: int) -> Iterator[tuple[int, dict]]:
    """(first step, batches of one dispatch on the devices), for every dispatch from `start` on."""
    for step in range(start, plan.steps, plan.steps_per_dispatch):
        parts = [
            data.batch(experiment.data.train, experiment.seed, step + i, plan.batch_size, flip=plan.flip)
            for i in range(plan.steps_per_dispatch)
        ]
        yield step, parallel.shard(jax.tree.map(lambda *leaves: np.stack(leaves), *parts), axis=1)


def _due(interval: int, step: int, last: int) -> bool:
    return step == last or (interval > 0 and step % interval == 0)


def train(experiment: Experiment, plan: TrainPlan, folder: Path) -> None:
    """Trains to `plan.steps`, going on from the newest whole checkpoint in `folder` if there is one.

    Raises:
      RunError: if the loss or the gradient stops being finite; it names the step and the last good checkpoint.
    """
    began = time.monotonic()
    parallel.check_divides(plan.batch_size // plan.grad_accum, "training.batch_size / training.grad_accum")

    # --- state: fresh, or the newest whole checkpoint -----------------------------------------------------------------
    checkpoints = workdir.checkpoints(folder)
    state = init_state(experiment, plan.optimizer, divided=plan.fsdp)
    layout = parallel.layout(state, divided=plan.fsdp)
    start = checkpoint.latest(checkpoints, warn=report.warn)
    if parallel.is_main():
        checkpoint.quarantine(checkpoints, start)
    parallel.barrier("set aside")
    if start is not None:
        state = checkpoint.restore(checkpoints, start, state)
        report.say(f"resuming at step {start}")
    elif plan.init_from is not None:
        state = _warm_start(experiment, state, plan)
    fresh, start = start is None, start or 0
    if fresh:
        state = parallel.place(_fit(experiment, state), layout)
    log = report.Log(folder, start)
    report.say(
        f"{experiment.name}: {len(experiment.data.train.x)} training examples of shape {experiment.data.shape}, "
        f"{count_params(state.params):,} parameters, {parallel.describe()}"
    )
    if start >= plan.steps and not fresh:
        advice = "; raise training.steps to train on" if plan.steps else ""
        report.say(f"step {start} is there already{advice}")

    # --- compiled parts -----------------------------------------------------------------------------------------------
    dispatch = dispatch_of(experiment, plan, layout)
    for _, part in itertools.islice(batches(experiment, plan, start), 1):
        dispatch, memory = parallel.compile_for(dispatch, state, part)
        report.say(f"memory of each device: {memory}")
    validate = validator(experiment, plan)
    draw = sample.make_draw(experiment, plan.sample_batch)
    measures, best = {name: make(experiment) for name, make in plan.best.items()}, Best(folder, plan.best, start)

    def show(params, step):
        x = draw(params, experiment.key(SAMPLE), plan.num_samples).x
        sample.write_picture(experiment, x, folder / "samples" / f"{step}.png")
        if (pixels := sample.picture(experiment, x)) is not None:
            log.image(step, "samples", pixels)

    # --- loop ---------------------------------------------------------------------------------------------------------
    recent: list[dict] = []
    skipped = 0  # steps in a row
    clock = time.monotonic()
    parts = data.prefetch(batches(experiment, plan, start))
    for first, part in report.progress(parts, total=plan.steps, initial=start, per_item=plan.steps_per_dispatch):
        state, metrics = dispatch(state, part)
        metrics = parallel.gather(metrics)
        skipped = check_finite(metrics, first, checkpoints, allowed=plan.skip, before=skipped)
        recent.append(metrics)
        step = first + plan.steps_per_dispatch
        if first == start:
            report.say(f"first step after {time.monotonic() - began:.1f} s")
        if _due(plan.log_every, step, plan.steps):
            means = {name: _mean_of_finite(np.concatenate([m[name] for m in recent])) for name in metrics}
            if plan.skip:
                means["skipped"] = int(sum(m["skipped"].sum() for m in recent))
            done, now = len(recent) * plan.steps_per_dispatch, time.monotonic()
            log.scalars(step, **means, examples_per_second=done * plan.batch_size / (now - clock))
            recent, clock = [], now
        if _due(plan.validate_every, step, plan.steps):
            log.scalars(step, validation_loss=validate(state.ema_params))
        if _due(plan.checkpoint_every, step, plan.steps):
            checkpoint.save(checkpoints, step, state, keep=plan.keep)
            for name, measure in measures.items():
                value = measure(state.ema_params)
                if best.offer(name, step, value, state.ema_params):
                    log.scalars(step, **{f"best_{name}": value})
        if step < plan.steps and _due(plan.sample_every, step, plan.steps):
            show(state.ema_params, step)

    if plan.steps == 0 and fresh:  # all there was to learn was fitted
        checkpoint.save(checkpoints, 0, state, keep=plan.keep)

    # --- what a person looks at, also where the run was killed after its last checkpoint ------------------------------
    last = max(start, plan.steps)
    show(state.ema_params, last)
    _finish(experiment, state.ema_params, folder, last, log, time.monotonic() - began)


def validator(experiment: Experiment, plan: TrainPlan) -> Callable:
    """ema_params -> the objective on test data, with the same batches, times and noise at every call."""
    size = plan.batch_size // plan.grad_accum
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
        return np.mean(losses)

    return validate


def _warm_start(experiment: Experiment, state: TrainState, plan: TrainPlan) -> TrainState:
    """The state with the averaged parameters of another run's newest checkpoint, as parameters and as their average.

    These are the parts that both runs have by name; all parameters where neither is in parts, and the score network's
    where only the other is not.

    Raises:
      UserError: if there is none, its network is another, or its settings are.
    """
    folder, ours = plan.init_from, state.params
    step = workdir.newest(folder)
    workdir.check_same(folder, experiment.config, plan.init_same, at_most=("process.horizon",))
    if names := workdir.components(folder, step) & ours.keys():
        found = workdir.averaged(folder, step, {name: ours[name] for name in names})
        params = {**ours, **found}
    elif MAIN in ours:
        params = {**ours, MAIN: workdir.averaged(folder, step, ours[MAIN])}
    else:
        params = workdir.averaged(folder, step, ours)
    report.say(f"beginning with the averaged parameters of {folder}, step {step}")
    return state._replace(params=params, ema_params=jax.tree.map(jnp.copy, params))


def _fit(experiment: Experiment, state: TrainState) -> TrainState:
    """The state with what is fitted to the training data: all there is to learn of it, or where its training begins."""
    if experiment.fits:  # which look at parameters on the host too, so whole
        whole = parallel.layout(state.params, divided=False)
        state = state._replace(params=parallel.place(state.params, whole))
    for i, (name, fit) in enumerate(experiment.fits.items()):
        began = time.monotonic()
        key = jax.random.fold_in(experiment.key(INIT), 1 + i)
        found = parallel.replicate(jax.device_get(fit(state.params, key)))
        report.say(f"fitted {name} in {time.monotonic() - began:.1f} s")
        params, ema_params = state.params | {name: found}, state.ema_params | {name: jax.tree.map(jnp.copy, found)}
        state = state._replace(params=params, ema_params=ema_params)
    return state


def _mean_of_finite(values: np.ndarray) -> float:
    """Mean over the steps that were not skipped; NaN if all were."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def check_finite(
    metrics: dict[str, np.ndarray], first: int, checkpoints: Path | None = None, *, allowed: int = 0, before: int = 0
) -> int:
    """Stops a run where more than `allowed` steps in a row have metrics that are not all finite.

    Args:
      metrics: [K] each, of the steps from `first` on.
      first: their first step.
      checkpoints: where the last good one is, for the message.
      allowed: how many such steps in a row were skipped without harm.
      before: how many came in a row just before `first`.

    Returns:
      How many came in a row at the end.

    Raises:
      RunError: naming the step, its metrics and the last good checkpoint.
    """
    for i, finite in enumerate(np.all([np.isfinite(values) for values in metrics.values()], axis=0)):
        before = 0 if finite else before + 1
        if before <= allowed:
            continue
        step = first + i
        bad = ", ".join(f"{name} = {values[step - first]}" for name, values in metrics.items())
        good = checkpoint.latest(checkpoints) if checkpoints is not None else None
        kept = f"the checkpoint of step {good} is kept" if good is not None else "no checkpoint had been written"
        raise RunError(f"step {step}: {bad}; {kept}. A lower training.learning_rate or stronger clipping may help")
    return before


def _finish(experiment: Experiment, params, folder: Path, step: int, log: report.Log, seconds: float) -> None:
    """Plots, and the words a run ends with."""
    plots = folder / "loss_by_log_snr.png"
    report.plot_noise_error(plots, *error_by_level(experiment, params))
    if records := report.read_metrics(folder):
        plots = folder / "loss.png"
        report.plot_loss(plots, records)
    sample.write_trajectory(experiment, params, folder / "trajectory.png", experiment.key(SAMPLE))
    log.close()
    if peak := parallel.peak_memory():
        report.say(f"most memory in use on a device: {peak / 2**20:,.0f} MiB")
    report.say(f"trained to step {step} in {seconds:.0f} s")
    report.say(f"samples: {folder / 'samples' / f'{step}.png'}   plots: {plots} and beside it")
    report.say(f"next:    python main.py --config={experiment.name} --workdir={folder} --mode=eval")
