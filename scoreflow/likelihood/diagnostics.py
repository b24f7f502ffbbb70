"""What a score model's errors cost: the terms of its ODE's KL divergence, and how far it is from a gradient.

With q_t the distribution of the data at t, s the network's score, p_t the density that the probability-flow ODE carries
from the terminal distribution, and s1 = grad log q_t (Lu et al. 2022, arXiv 2206.08265; statements checked in closed
form in the tests)

    KL(q_{t_min} || p_{t_min}) = KL(q_T || terminal) + J_ODE,   J_ODE = J_SM + J_Diff                               (1)
    J_SM   = 1/2 int g^2 E |s - s1|^2 dt                            what score matching minimizes                   (2)
    J_Diff = 1/2 int g^2 E (s - s1).(grad log p_t - s) dt           what it leaves out                              (3)
    J_F    = 1/2 int g^2 E |grad log p_t - s1|^2 dt                 with J_ODE <= sqrt(J_SM J_F)                    (4)

The SDE model's KL is at most KL(q_T || terminal) + J_SM; there is no such bound for the ODE, since (3) may be positive.
Along a trajectory of the ODE dx = h dt the score S = grad log p_t obeys

    dS/dt = -grad tr(grad h) - (grad h)^T S,   S(T) = grad log terminal(x(T))                                       (5)

so it takes a solve to T and one back. (2) to (4) need s1, so data whose score is known; without it there is only

    J_gap  = 1/2 int g^2 E |grad log p_t - s|^2 dt                  how far the network is from its own ODE's score (6)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scoreflow.divergence import a1, asymmetry, asymmetry_exact, directional, inner
from scoreflow.likelihood.ode import Density
from scoreflow.objectives import times
from scoreflow.objectives.times import TimeSampler
from scoreflow.processes.sdes import Process, expand
from scoreflow.samplers.adaptive import integrate
from scoreflow.score import Score, probability_flow
from scoreflow.types import Key


class ModelScore(NamedTuple):
    """`score`, grad log p_t(x) of the ODE model [B, ...], and `ok` [B]: whether both solves arrived."""

    score: jax.Array
    ok: jax.Array


def model_score(
    process: Process,
    score: Score,
    terminal: Density,
    x: jax.Array,
    t: jax.Array,
    probe: jax.Array | None = None,
    cond: jax.Array | None = None,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 1000,
) -> ModelScore:
    """grad log p_t(x) of the ODE model by (5).

    Args:
      process: the forward SDE.
      score: the score function, differentiable twice in x.
      terminal: the distribution assumed at T.
      x: [B, ...].
      t: times [B] of x.
      probe: Rademacher probes like x for grad tr(grad h), unbiased; None for all d directions.
      cond: labels [B] int32 or None.
      rtol, atol, max_steps: of both solves.
    """
    flow = probability_flow(process, score)
    span = process.horizon - t

    def at(progress, args):  # every example starts at its own t, so the solver's clock runs from 0 at t to 1 at T
        start, span, probe, cond = args
        return start + progress * span, span, probe, cond

    def forward(progress, x, args):
        now, span, _, cond = at(progress, args)
        return expand(span, x) * flow(now, x, cond)

    def backward(progress, state, args):
        x, model = state
        now, span, probe, cond = at(progress, args)
        field = lambda x: flow(now, x, cond)
        value, pull = jax.vjp(field, x)
        scale = expand(span, x)
        return scale * value, -scale * (_grad_trace(field, x, probe) + pull(model)[0])

    args = (t, span, probe, cond)
    options = {"rtol": rtol, "atol": atol, "max_steps": max_steps}
    to_end = integrate(forward, x, 0.0, 1.0, args, **options)
    last = jax.grad(lambda x: jnp.sum(terminal.log_prob(x)))(to_end.y)
    back = integrate(backward, (to_end.y, last), 1.0, 0.0, args, **options)
    state: Any = back.y
    return ModelScore(state[1], to_end.ok & back.ok)


def _grad_trace(field: Callable, x: jax.Array, probe: jax.Array | None) -> jax.Array:
    """grad tr J of a field at x [B, ...]: unbiased along a probe like x, or exact without one."""

    def slope(v):
        derivatives = directional(field, x, jnp.broadcast_to(v, x.shape), third=True)
        assert derivatives.slope is not None
        return derivatives.slope

    if probe is not None:
        return slope(probe)
    size = x[0].size
    basis = jnp.eye(size, dtype=x.dtype).reshape(size, 1, *x.shape[1:])
    return jax.vmap(slope)(basis).sum(0)


class KLTerms(NamedTuple):
    """Estimates in nats, one per example, whose means are (2), (3), (4) and (6); NaN where a solve failed.

    `j_sm`, `j_diff` and `j_f` are None where the true score is not known.
    """

    j_sm: jax.Array | None
    j_diff: jax.Array | None
    j_f: jax.Array | None
    j_gap: jax.Array


def kl_terms(
    process: Process,
    score: Score,
    terminal: Density,
    key: Key,
    x0: jax.Array,
    cond: jax.Array | None = None,
    *,
    t_min: float,
    true_score: Score | None = None,
    exact: bool = False,
    sample_times: TimeSampler = times.importance,
    **solver,
) -> KLTerms:
    """(2), (3), (4) and (6) with one time for each example.

    Args:
      process: the forward SDE.
      score: the score function, differentiable twice in x.
      terminal: the distribution assumed at T.
      key: PRNG key of times, noise and probes.
      x0: data [B, ...].
      cond: labels [B] int32 or None.
      t_min: where the integrals begin.
      true_score: grad log q_t, where it is known.
      exact: all d directions in (5) instead of probes: for few dimensions. Otherwise (5) is solved twice with
        independent probes, each time unbiased, and what is quadratic in it, (4) and (6), is the product of the two: a
        square would be too large by the probe's variance. Single values may then be negative.
      sample_times: distribution of the times.
      **solver: tolerances, see `model_score`.
    """
    key_t, key_noise, key_probe = jax.random.split(key, 3)
    t, inv_density = sample_times(process, key_t, x0.shape[0], t_min=t_min)
    xt, _, _ = process.perturb(key_noise, x0, t)
    probes = [None] if exact else list(jax.random.rademacher(key_probe, (2, *xt.shape), xt.dtype))
    solves = [model_score(process, score, terminal, xt, t, probe, cond, **solver) for probe in probes]
    first, second, network = solves[0].score, solves[-1].score, score(xt, t, cond)
    factor = jnp.where(solves[0].ok & solves[-1].ok, 0.5 * inv_density * process.diffusion_sq(t), jnp.nan)

    def term(a, b):
        return factor * inner(a, b)

    j_gap = term(first - network, second - network)
    if true_score is None:
        return KLTerms(None, None, None, j_gap)
    true = true_score(xt, t, cond)
    error = network - true
    j_diff = term(error, 0.5 * (first + second) - network)
    return KLTerms(term(error, error), j_diff, term(first - true, second - true), j_gap)


class Symmetry(NamedTuple):
    """How far the score's Jacobian J is from symmetric, for each example and time, [B, T].

    Attributes:
      asym: |J - J^T|_F^2 / 2.
      weighted: sigma(t)^2 times that: of the noise predictor, in units of the data.
      nasym: asym / (2 |J|_F^2), in [0, 1]: 0 for a symmetric J, 1 for a skew one. A ratio of means over probes.
      legacy: the published code's estimate of nasym, a ratio for a single probe: biased and without bounds.
    """

    asym: jax.Array
    weighted: jax.Array
    nasym: jax.Array
    legacy: jax.Array


def symmetry(
    process: Process,
    score: Score,
    key: Key,
    x0: jax.Array,
    t: jax.Array,
    cond: jax.Array | None = None,
    *,
    num: int = 16,
) -> Symmetry:
    """Asymmetry of a score over time (Chao et al. 2023, arXiv 2209.12753), at data noised afresh for each time.

    Args:
      process: the forward SDE.
      score: the score function.
      key: PRNG key of noise and probes.
      x0: data [B, ...].
      t: times [T].
      cond: labels [B] int32 or None.
      num: Rademacher probes for each example and time; 0 for all d directions, without error.
    """

    def at(inputs):
        key, t = inputs
        key_noise, key_probe = jax.random.split(key)
        ts = jnp.full(x0.shape[0], t)
        xt, _, sigma = process.perturb(key_noise, x0, ts)
        field = lambda x: score(x, ts, cond)
        v = jax.random.rademacher(key_probe, (max(num, 1), *xt.shape), xt.dtype)
        estimate = asymmetry(field, xt, v) if num else asymmetry_exact(field, xt)
        one = asymmetry(field, xt, v[:1], form=a1)
        legacy = 0.5 * one.asym / (one.size + 1e-8)
        return Symmetry(estimate.asym, sigma**2 * estimate.asym, 0.5 * estimate.asym / estimate.size, legacy)

    over_time = jax.lax.map(at, (jax.random.split(key, len(t)), t))
    return Symmetry(*(jnp.moveaxis(leaf, 0, 1) for leaf in over_time))


PUBLISHED_TIMES = 10
"""Number of times at which the plane's published score error is taken: n / 11 of the horizon, n = 0 ... 9."""


class ScoreError(NamedTuple):
    """Half the squared distance to the exact score, not weighted, for each example and published time, [B, 10].

    Attributes:
      matched: of data, model and exact score at the same time.
      legacy: the published code's: data and exact score at n / 11, of data noised twice (sqrt(2) sigma), and the model
        evaluated at (n + 1) / 10. It is not 0 for an exact model: for comparison with the published tables only.
    """

    matched: jax.Array
    legacy: jax.Array


def score_error(
    process: Process,
    score: Score,
    log_density: Callable[..., jax.Array],
    key: Key,
    x0: jax.Array,
    cond: jax.Array | None = None,
    *,
    t_min: float,
) -> ScoreError:
    """Error of a score where the density of the data is known (Chao et al. 2023, arXiv 2209.12753, section 3.2).

    Args:
      process: the forward SDE.
      score: the score function.
      log_density: (x [d], alpha, sigma) -> log-density of alpha data + sigma noise.
      key: PRNG key of the noise, drawn afresh for each time.
      x0: data [B, ...].
      cond: labels [B] int32 or None.
      t_min: the least time.
    """
    n = jnp.arange(PUBLISHED_TIMES)
    t, t_legacy = (jnp.clip(fraction * process.horizon, t_min) for fraction in (n / 11, (n + 1) / 10))

    def at(inputs):
        key, *matched_and_legacy = inputs
        ts, ts_legacy = (jnp.full(x0.shape[0], t, x0.dtype) for t in matched_and_legacy)
        xt, _, _ = process.perturb(key, x0, ts)

        def half_square(t_model, width):
            true = jax.vmap(jax.grad(log_density))(xt, process.alpha(ts), width * process.sigma(ts))
            apart = score(xt, t_model, cond) - true
            return 0.5 * inner(apart, apart)

        return ScoreError(half_square(ts, 1.0), half_square(ts_legacy, 2.0**0.5))

    over_time = jax.lax.map(at, (jax.random.split(key, PUBLISHED_TIMES), t, t_legacy))
    return ScoreError(*(jnp.moveaxis(leaf, 0, 1) for leaf in over_time))


def rotation(score: Score, x: jax.Array, t: jax.Array, cond: jax.Array | None = None) -> jax.Array:
    """The rotation density dS_1/dx_2 - dS_2/dx_1 of a score at points x [B, 2], [B]; 0 where it is a gradient."""
    _, push = jax.linearize(lambda x: score(x, t, cond), x)
    along = [push(jnp.broadcast_to(axis, x.shape)) for axis in jnp.eye(2, dtype=x.dtype)]
    return along[1][:, 0] - along[0][:, 1]
