"""Test data as a density sees them: dequantized in data space, or encoded with the other terms of a VAE's bound."""

import functools
from collections.abc import Callable

import jax

from scoreflow import dequantise
from scoreflow.dequantise import Dequantised
from scoreflow.experiment import READ, Experiment
from scoreflow.latent import kl
from scoreflow.models import DEQUANTISER, LATENT
from scoreflow.models.dequantiser import NoiseFlow
from scoreflow.runs import parallel
from scoreflow.types import Key, Params

Rule = Callable[[Params, Key, jax.Array], Dequantised]
"""(params, key, data [N, ...] as stored) -> Dequantised."""


def rule_of(experiment: Experiment, name: str, start: float, flow: NoiseFlow | None, size: int) -> Rule | None:
    """How test data become continuous; None where they are.

    Args:
      experiment: the model and its data.
      name: of the dequantization in data space.
      start: time at which the likelihood begins, for truncated_normal.
      flow: for variational.
      size: examples at a time, where a network is needed.
    """
    if experiment.space.latent is not None:
        return _encoded(experiment, size)
    if experiment.space.bins is None or not name:
        return None
    return _dequantised(experiment, name, start, flow, size)


def _encoded(experiment: Experiment, size: int) -> Rule:
    """Latents, with what the bound of a VAE adds to their density in the place of `log_q`.

    What is modeled of binary data is the same at every call, so that draws are of one example's posterior.
    """
    latent, key_quantise = experiment.space.latent, experiment.key(READ)
    assert latent is not None

    def rule(params, key, x):
        encoded = latent.infer(params[LATENT], key, x)
        log_q = kl.example_sums(encoded.top.log_q) + encoded.lower_kl.sum(1) + encoded.reconstruction
        return Dequantised(encoded.top.z, log_q)

    run = _one_by_one(rule, size)
    return lambda params, key, data: run(params, key, latent.quantiser.quantise(key_quantise, data))


def _dequantised(experiment: Experiment, name: str, start: float, flow: NoiseFlow | None, size: int) -> Rule:
    """Dequantization by name: uniform, truncated_normal at the time `start`, variational by a flow, or none."""
    rule, bins = dequantise.RULES[name], experiment.space.bins
    assert bins is not None
    if rule is dequantise.truncated_normal:
        process = experiment.model.process
        alpha, sigma = (float(at(start)) for at in (process.alpha, process.sigma))
        rule = functools.partial(rule, alpha=alpha, sigma=sigma)
    if rule is not dequantise.variational:
        return lambda params, key, image: rule(key, image, bins)
    assert flow is not None

    def by_flow(params, key, image):
        return rule(key, image, bins, flow=functools.partial(flow.apply, params[DEQUANTISER]))

    return _one_by_one(by_flow, size)


def _one_by_one(rule: Rule, size: int) -> Rule:
    """rule(params, key, x [1, ...]) over x [N, ...] with a key each, `size` at a time, which a network needs."""

    @parallel.jit
    def run(params, key, x):
        def one(inputs):
            key, x = inputs
            return jax.tree.map(lambda leaf: leaf[0], rule(params, key, x[None]))

        return jax.lax.map(one, (jax.random.split(key, len(x)), x), batch_size=min(size, len(x)))

    return run
