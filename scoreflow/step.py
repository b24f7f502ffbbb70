"""One training step as a pure function, and its compiled form; and the loss on test data."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scoreflow import data
from scoreflow.experiment import VALIDATE, Experiment
from scoreflow.objectives.protocols import Objective
from scoreflow.runs import checkpoint, parallel
from scoreflow.runs.errors import RunError
from scoreflow.types import Key, Params

Batch = Mapping[str, Any]
"""Arrays with leading axis B by name: `x`, and `label` where there are labels."""


class TrainState(NamedTuple):
    """What a step needs from the one before: `step` int32, `params`, their average `ema_params`, `opt_state`."""

    step: jax.Array
    params: Params
    ema_params: Params
    opt_state: optax.OptState


def init_state(
    init: Callable[[Key], Params], optimizer: optax.GradientTransformation, key: Key, *, fsdp: bool = False
) -> TrainState:
    """The state before the first step.

    Args:
      init: (key) -> fresh parameters.
      optimizer: its state begins with them.
      key: PRNG key of the parameters.
      fsdp: whether each device holds a share of the state; otherwise every device holds all of it.

    Raises:
      UserError: if a device cannot hold it.
    """

    def make(key):
        return state_of(init(key), optimizer)

    shapes = jax.eval_shape(make, key)
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes.params))
    words = f"a training state of {count:,} parameters, with their averages and moments,"
    parallel.check_memory(size // (parallel.device_count() if fsdp else 1), words, "choose a smaller model")
    layout = parallel.layout(shapes, divided=fsdp)
    return parallel.jit(make, once=True, out_shardings=layout)(key)


def state_of(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step, with the given parameters."""
    return TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer.init(params))


def ema_decay_at(step: jax.Array, decay: float) -> jax.Array:
    """The decay at a step: small at first, so that the average forgets the initial parameters."""
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    key: Key,
    *,
    ema_decay: float = 0.999,
    followed: tuple[str, ...] = (),
    grad_accum: int = 1,
    skip: int = 0,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Makes train_step(state, batch) -> (state, {name: scalar}).

    Its randomness is a function of (key, state.step).

    Args:
      objective: what is minimized.
      optimizer: the optax transformation.
      key: PRNG key of the run.
      ema_decay: of the averaged parameters.
      followed: groups of parameters that are not averaged: the newest are used.
      grad_accum: microbatches that a batch is cut into, each with a key of its own, whose gradients are averaged before
        the one update.
      skip: where above 0, a step whose loss or gradient is not finite changes nothing but `state.step`, and its metrics
        have `skipped` = 1.
    """

    def gradients(params, key, batch, step):
        def loss(params, key, batch):
            return objective(params, key, batch, train=True, step=step)

        grad = jax.value_and_grad(loss, has_aux=True)
        if grad_accum == 1:
            (_, terms), grads = grad(params, key, batch)
            return grads, terms
        microbatches = jax.tree.map(lambda leaf: leaf.reshape(grad_accum, -1, *leaf.shape[1:]), batch)

        def one(inputs):
            (_, terms), grads = grad(params, *inputs)
            return grads, terms

        def add(total, inputs):
            return jax.tree.map(jnp.add, total, one(inputs)), None

        keys = jax.random.split(key, grad_accum)
        first, rest = (jax.tree.map(lambda leaf, i=i: leaf[i], (keys, microbatches)) for i in (0, slice(1, None)))
        total, _ = jax.lax.scan(add, one(first), rest)
        return jax.tree.map(lambda leaf: leaf / grad_accum, total)

    def train_step(state, batch):
        grads, terms = gradients(state.params, jax.random.fold_in(key, state.step), batch, state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        pace = 1.0 - ema_decay_at(state.step, ema_decay)
        # a number that never moves stays the same to the last digit, as it would not in a weighted sum
        ema_params = jax.tree.map(lambda ema, new: ema + pace * (new - ema), state.ema_params, params)
        if followed:
            ema_params = {**ema_params, **{name: params[name] for name in followed if name in params}}
        after, metrics = (params, ema_params, opt_state), {**terms, "grad_norm": optax.tree.norm(grads)}
        if skip:
            finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
            after = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, tuple(state[1:]))
            metrics["skipped"] = 1.0 - finite
        return TrainState(state.step + 1, *after), metrics

    return train_step


def compile_dispatch(train_step: Callable, steps_per_dispatch: int, layout: Any = None) -> Callable:
    """Jits (state, batches [K, B, ...]) -> (state, metrics [K]); the state's memory is reused.

    Args:
      train_step: see `make_train_step`.
      steps_per_dispatch: K, steps inside one compiled program.
      layout: the state's shardings; None for all of it on every device.
    """

    def dispatch(state, batches):
        if steps_per_dispatch == 1:
            state, metrics = train_step(state, jax.tree.map(lambda leaf: leaf[0], batches))
            return state, jax.tree.map(lambda leaf: leaf[None], metrics)
        return jax.lax.scan(train_step, state, batches)

    whole = parallel.replicated()
    return parallel.jit(dispatch, donate_argnums=0, out_shardings=(whole if layout is None else layout, whole))


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


def validator(experiment: Experiment, batch_size: int) -> Callable[[Params], float]:
    """ema_params -> the objective on test data, with the same batches, times and noise at every call.

    In whole batches for any `grad_accum`, which may change in a run whose best checkpoint goes by this number. Without
    a gradient they take less memory than a training step.
    """
    objective = parallel.jit(
        lambda params, key, batch: experiment.objective(params, key, batch, train=False)[0],
        out_shardings=parallel.replicated(),
    )
    n_batches = max(1, min(4, len(experiment.data.test.x) // batch_size))

    def validate(params):
        losses = []
        for i in range(n_batches):
            batch = parallel.shard(data.batch(experiment.data.test, experiment.seed, i, batch_size))
            losses.append(float(objective(params, jax.random.fold_in(experiment.key(VALIDATE), i), batch)))
        return float(np.mean(losses))

    return validate
