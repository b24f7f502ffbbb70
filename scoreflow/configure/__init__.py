"""From a config to the parts of an experiment: the only reader of ConfigDict.

`values` says what a setting's value must be, `tables` what can be chosen and `sections` where; `checks` refuses what
cannot work. `parts` are what a section names, `objectives` and `latents` what training minimizes, `training` and
`plans` how to train, evaluate and sample; this file puts them together.
"""

import functools
from collections.abc import Callable

import jax
import ml_collections
import numpy as np

from scoreflow import dequantise, experiment, score
from scoreflow.configure import latents
from scoreflow.configure.checks import check, check_shape
from scoreflow.configure.objectives import encoder, of_noise, of_score, with_terminal
from scoreflow.configure.parts import bins, family, model, process, source, space
from scoreflow.configure.plans import eval_plan, planning, sample_plan, sampler, steps_to
from scoreflow.configure.tables import (
    ENERGIES,
    FLOWS,
    LATENTS,
    LOG_DENSITIES,
    PREDICTIONS,
    TIMES,
    WEIGHTS,
)
from scoreflow.configure.training import optimizer, train_plan
from scoreflow.configure.values import make
from scoreflow.data import Source
from scoreflow.latent import space as latent
from scoreflow.models import DEQUANTISER, LATENT, MIXING, TERMINAL, Network, Other, beside, mixing, only
from scoreflow.processes import sdes
from scoreflow.terminal import families

__all__ = [
    "build",
    "check",
    "eval_plan",
    "optimizer",
    "planning",
    "process",
    "sample_plan",
    "source",
    "steps_to",
    "train_plan",
]

_FITTED = 50_000  # training examples that a terminal law is fitted to


def _score(config, forward: sdes.Process, net: Network) -> tuple[Callable, Callable | None]:
    """`score` and `energy` of an `Experiment`."""
    kind, sigma_data = PREDICTIONS[config.score.prediction], config.score.sigma_data

    def of_network(params, *, train=False, key=None):
        apply = functools.partial(net.apply, train=True, key=key) if train else net.apply
        if not config.score.mixed:
            return score.score_fn(forward, apply, params, kind, sigma_data=sigma_data)
        active = jax.lax.stop_gradient(params[MIXING]["active"])

        def seen(params, x, log_snr, cond=None):
            return apply(params, x * active.reshape((1,) * (x.ndim - 1) + active.shape), log_snr, cond)

        return score.mixed(
            forward, score.score_fn(forward, seen, params, kind, sigma_data=sigma_data), params[MIXING]["logits"]
        )

    if net.apply is None:
        return (lambda params, **options: score.normal(forward)), None
    if (power := ENERGIES[config.score.energy]) is None:
        return of_network, None
    energy = lambda params, **options: score.energy_fn(forward, of_network(params, **options), power)
    return (lambda params, **options: score.constrained(energy(params, **options))), energy


def _networks(config, found: Source, within: latent.Space | None, law: families.Family) -> Network:
    """The network with everything that has parameters beside it."""
    chosen = make(LATENTS, config.latent)
    if chosen is not None and not chosen.prior:
        return only(LATENT, within.init)
    others = {
        DEQUANTISER: make(FLOWS, config.dequantiser),
        TERMINAL: law if law.init else None,
        MIXING: mixing(config.score.mixed_logit) if config.score.mixed else None,
        LATENT: within and Other(lambda key, x_shape: within.init(key)),
    }
    others = {name: part for name, part in others.items() if part is not None}
    return beside(model(config, found), **others) if others else model(config, found)


def _objective(config, found: Source, forward: sdes.Process, score_of: Callable, encode: Callable, within, grid):
    """What is minimized, without a terminal law's part."""
    if config.dequantiser.name != "none":
        return of_noise(config, forward, score_of, grid)
    on_score = of_score(config, forward, score_of, encode, found)
    if within is None:
        return on_score
    parts = latents.Parts(
        space=within,
        process=forward,
        score_of=score_of,
        t_min=config.t_min,
        weight=make(WEIGHTS, config.weight),
        law=make(TIMES, config.times),
        of_score=on_score,
    )
    return make(LATENTS, config.latent).objective(parts)


def build(config: ml_collections.ConfigDict, name: str) -> experiment.Experiment:
    """Checks a config and makes the experiment.

    Args:
      config: see `configs/default.py` for every setting.
      name: the config file as given to the command, for messages.

    Raises:
      UserError: for anything in it that cannot work, data included.
    """
    check(config)
    found, forward = source(config), process(config)
    within = space(config, found)
    shape = within.shape if within else found.shape
    check_shape(config, found, shape)
    grid = bins(config, found, within)
    encode = latents.encoder(within) if within else encoder(config, grid)
    law = family(config, found, encode)
    net = _networks(config, found, within, law)
    score_of, energy = _score(config, forward, net)
    objective = _objective(config, found, forward, score_of, encode, within, grid)
    if law.loss:
        objective = with_terminal(config, forward, objective, encode, law.loss)
    part = (lambda params: params[TERMINAL]) if law.init else (lambda params: None)
    draw, per_device = sampler(config, forward)
    if within:
        decode = lambda params, key, x: within.show(params[LATENT], key, x)
    else:
        decode = lambda params, key, x: dequantise.quantise(x, grid) if grid else x
    return experiment.Experiment(
        name=name,
        seed=config.seed,
        source=found,
        shape=shape,
        process=forward,
        t_min=config.t_min,
        terminal=lambda params: law.law(part(params), forward, forward.horizon),
        terminal_at=(lambda params, t: law.law(part(params), forward, t)) if law.anywhere else None,
        fits=_fits(config, found, forward, encode, within, law),
        network=net,
        conditional=config.data.conditional,
        score=score_of,
        energy=energy,
        latent=within,
        encode=encode,
        decode=decode,
        bins=grid,
        log_density=LOG_DENSITIES.get(config.data.name),
        objective=objective,
        sampler=draw,
        per_device=per_device,
        config=config.to_dict(),
    )


def _fits(config, found: Source, forward: sdes.Process, encode: Callable, within, law: families.Family) -> dict:
    """`fits` of an `Experiment`."""
    rows, fits = found.train.x[:_FITTED], {}
    if law.fit:

        def fit_law(params, key):
            every = latents.in_batches if within else lambda encode, *args: np.asarray(encode(*args))
            clean = lambda key: every(encode, params, key, np.asarray(rows))
            return law.fit(key, clean=clean, process=forward)

        fits[TERMINAL] = fit_law
    chosen = make(LATENTS, config.latent)
    if chosen is not None and chosen.drop_inactive:
        fits[MIXING] = functools.partial(latents.mask_inactive, within, rows)
    return fits
