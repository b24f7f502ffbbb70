"""The state in which training begins: restored, taken from another run, or fresh with what is fitted before it."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from scoreflow.experiment import INIT, Experiment
from scoreflow.models import MAIN
from scoreflow.runs import checkpoint, parallel, report, workdir
from scoreflow.runs.errors import UserError
from scoreflow.step import TrainState, init_state


class WarmStart(NamedTuple):
    """A run whose averaged parameters training begins with.

    Attributes:
      folder: of that run.
      same: settings that must be the same there, by what their dotted names begin with.
      defaults: values of settings that a run of an older version does not have, by dotted name.
      parts: names of the groups of parameters that are taken; () for all.
    """

    folder: Path
    same: tuple[str, ...] = ()
    defaults: Mapping[str, object] = {}
    parts: tuple[str, ...] = ()


class Beginning(NamedTuple):
    """A state, its step, whether training begins rather than goes on, and the shardings of the state."""

    state: TrainState
    step: int
    fresh: bool
    layout: object


def begin(
    experiment: Experiment,
    optimizer: optax.GradientTransformation,
    checkpoints: Path,
    *,
    fsdp: bool = False,
    warm_start: WarmStart | None = None,
) -> Beginning:
    """Restores the newest whole checkpoint in a folder, or makes a state; steps that are not whole are set aside.

    Args:
      experiment: what is trained.
      optimizer: its optax transformation.
      checkpoints: folder of the run's checkpoints; it need not exist.
      fsdp: whether each device holds a share of the state.
      warm_start: the run that training begins with, where there is no checkpoint yet.

    Raises:
      UserError: if that run cannot be used, or a checkpoint does not fit the experiment.
    """
    state = init_state(experiment.init, optimizer, experiment.key(INIT), fsdp=fsdp)
    layout = parallel.layout(state, divided=fsdp)
    start = checkpoint.latest(checkpoints, warn=report.warn)
    if parallel.is_main():
        checkpoint.quarantine(checkpoints, start)
    parallel.barrier("quarantine")
    if start is not None:
        report.say(f"resuming at step {start}")
        return Beginning(checkpoint.restore(checkpoints, start, state), start, False, layout)
    if warm_start is not None:
        state = _warm_start(experiment, state, warm_start)
    return Beginning(parallel.place(fit_groups(experiment, state), layout), 0, True, layout)


def _warm_start(experiment: Experiment, state: TrainState, source: WarmStart) -> TrainState:
    """The state with the averaged parameters of another run's newest checkpoint, as parameters and as their average.

    These are the groups that both runs have by name; all parameters where neither is in groups, and the score network's
    where only the other is not.

    Raises:
      UserError: if there is none, its network is another, or its settings are.
    """
    folder, ours = source.folder, state.params
    step = checkpoint.latest(workdir.checkpoints(folder), warn=report.warn)
    if step is None:
        raise UserError(f"init_from = {folder} holds no usable checkpoint: train that run first, with its own config")
    workdir.check_same(
        folder, experiment.config, source.same, at_most=("process.horizon",), defaults=dict(source.defaults)
    )
    names = workdir.components(folder, step) & ours.keys()
    if source.parts:
        names &= set(source.parts)
        if missing := set(source.parts) - names:
            raise UserError(f"init_from = {folder} has no parameters of {', '.join(sorted(missing))} to begin with")
    if names:
        params = {**ours, **workdir.averaged(folder, step, {name: ours[name] for name in names})}
    elif MAIN in ours:
        params = {**ours, MAIN: workdir.averaged(folder, step, ours[MAIN])}
    else:
        params = workdir.averaged(folder, step, ours)
    taken = f" of {', '.join(sorted(names))}" if source.parts else ""
    report.say(f"beginning with the averaged parameters{taken} of {folder}, step {step}")
    return state._replace(params=params, ema_params=jax.tree.map(jnp.copy, params))


def fit_groups(experiment: Experiment, state: TrainState) -> TrainState:
    """The state with what is fitted to the training data: all there is to learn of it, or where its training begins."""
    fits = experiment.model.fits
    if fits:  # which look at parameters on the host too, so whole
        whole = parallel.layout(state.params, divided=False)
        state = state._replace(params=parallel.place(state.params, whole))
    for i, (name, fit_group) in enumerate(fits.items()):
        began = time.monotonic()
        report.say(f"fitting {name} to the training data")
        key = jax.random.fold_in(experiment.key(INIT), 1 + i)
        group = parallel.replicate(jax.device_get(fit_group(state.params, key)))
        report.say(f"fitted {name} in {time.monotonic() - began:.1f} s")
        params, ema_params = state.params | {name: group}, state.ema_params | {name: jax.tree.map(jnp.copy, group)}
        state = state._replace(params=params, ema_params=ema_params)
    return state
