"""The state in which training begins: restored, taken from another run, or fresh with what is fitted before it."""

import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from scoreflow.experiment import INIT, Experiment
from scoreflow.models import MAIN
from scoreflow.optimizers import OptimizerOptions, VaeRates, rate_at, vae_rate_at
from scoreflow.runs import checkpoint, lock, parallel, report, workdir
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
      UserError: if that run cannot be used, a checkpoint does not fit the experiment, or there are checkpoints and none
        is whole.
    """
    start = checkpoint.latest(checkpoints, warn=report.warn)
    if start is None and (damage := checkpoint.all_damaged(checkpoints)):
        advice = f"bring back a copy, or remove {shlex.quote(str(checkpoints))} to begin again at step 0"
        raise UserError(f"{checkpoints.parent} cannot go on: {damage}; {advice}")
    if start is None and checkpoint.any_step(checkpoints):
        report.warn(f"the first save in {checkpoints} was killed; beginning at step 0")
    state = init_state(experiment.init, optimizer, experiment.key(INIT), fsdp=fsdp)
    layout = parallel.layout(state, divided=fsdp)
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
    step = checkpoint.latest(workdir.checkpoints(folder), warn=report.warn, saving=lock.busy(folder))
    if step is None and (damage := checkpoint.all_damaged(workdir.checkpoints(folder))):
        raise UserError(f"init_from = {folder} cannot be used: {damage}; bring back a copy")
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


def say_if_stretched(config: Mapping[str, Any], start: int, before: int, steps: int) -> None:
    """Another number of steps moves the learning rates of cosine schedules in the middle of a run: says by how much.

    Args:
      config: all settings, as nested dicts of plain values.
      start: the step at which the run goes on.
      before, steps: the last step, as it was and as it is now.
    """
    training, latent = config.get("training", {}), config.get("latent", {})
    rates: dict[str, Callable[[int, int], float]] = {}
    if training.get("schedule") == "cosine":
        rule = OptimizerOptions(**{name: training[name] for name in OptimizerOptions._fields})
        rates["learning rate"] = lambda step, last: rate_at(step, last, rule)
    if latent.get("name") == "joint" and training.get("learn") == "all":
        of_vae = VaeRates(**{name: latent[name] for name in VaeRates._fields})
        rates["VAE's learning rate"] = lambda step, last: vae_rate_at(step, last, of_vae, training["warmup"])
    if not rates or before == steps:
        return
    report.say(f"training.steps = {steps}, {before} before: the cosine schedule now ends there")
    for what, rate in rates.items():
        old, new = rate(min(start, before), before), rate(start, steps)
        report.say(f"at step {start} the {what} is {new:.2g}, not {old:.2g}")
