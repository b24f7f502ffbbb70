"""What a sampler does in one interval of its grid: each rule is a `Rule` for `loop.sample`.

`affine` makes a rule of any step that is affine in (x, score), of which `transitions` has a table. `HEUN` and
`DPM_SOLVER_PP_2M` solve the probability-flow ODE with order 2. `predictor_corrector` adds Langevin steps to an affine
rule. A rule of your own that needs no memory is a function and `one_step`:

    def midpoint(field, x, t, s, key):
        h = s - t
        return x + h * field.drift(t + 0.5 * h, x + 0.5 * h * field.drift(t, x))

    sample(one_step(midpoint, evaluations=2), process, score, key, x_init, grid)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from scoreflow.processes import transitions
from scoreflow.processes.sdes import Process, expand
from scoreflow.samplers.loop import Field, Interval, Rule, fold, normal
from scoreflow.score import Score
from scoreflow.types import CountOrZero, Key, Positive


def one_step(step: Callable[[Field, jax.Array, jax.Array, jax.Array, Key], jax.Array], evaluations: int) -> Rule:
    """A rule without memory or coefficients, made of a plain function.

    Args:
      step: (field, x [B, ...] at t, t, s, key) -> x at s < t, with scalar times.
      evaluations: of the score, in each step.
    """

    def run(field: Field, x: jax.Array, state: None, interval: Interval) -> tuple[jax.Array, None]:
        return step(field, x, interval.t, interval.s, interval.key), state

    run.__doc__ = step.__doc__
    return Rule(run, evaluations)


# ----------------------------------------------------------------------------------------------------------------------
# The probability-flow ODE with order 2. (Euler's rule and DDIM are affine.)


def heun(field: Field, x: jax.Array, t: jax.Array, s: jax.Array, key: Key) -> jax.Array:
    """Heun's rule in t: two evaluations per interval, order 2. The score is evaluated at the last time of the grid."""
    h = s - t
    slope = field.drift(t, x)
    return x + 0.5 * h * (slope + field.drift(s, x + h * slope))


HEUN = one_step(heun, evaluations=2)


def dpm_solver_pp_2m(field: Field, x: jax.Array, before: jax.Array, interval: Interval) -> tuple[jax.Array, jax.Array]:
    """DPM-Solver++(2M): exponential multistep in lambda = log_snr / 2 on the x_0 prediction, order 2.

        x_s = (sigma_s / sigma_t) x_t - alpha_s expm1(-h) D,  h = lambda_s - lambda_t,
        D = x0_t + (h / (2 h_before)) (x0_t - x0_before);  D = x0_t in the first step

    One evaluation per interval; the state is x0_before. Lu et al. 2022 (arXiv 2211.01095), algorithm 2.
    """
    scale, weight, extrapolation = interval.coefficients
    x0 = field.denoised(interval.t, x)
    return scale * x + weight * (x0 + extrapolation * (x0 - before)), x0


def _multistep_coefficients(process: Process, grid: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Those of x_t, of D, and of x0_t - x0_before inside D; the last is 0 in the first step."""
    lam = 0.5 * process.log_snr(grid)
    alpha, sigma = process.alpha(grid), process.sigma(grid)
    h = lam[1:] - lam[:-1]
    extrapolation = jnp.concatenate([jnp.zeros(1, h.dtype), 0.5 * h[1:] / h[:-1]])
    return sigma[1:] / sigma[:-1], -alpha[1:] * jnp.expm1(-h), extrapolation


DPM_SOLVER_PP_2M = Rule(dpm_solver_pp_2m, 1, init=jnp.zeros_like, coefficients=_multistep_coefficients)


# ----------------------------------------------------------------------------------------------------------------------
# Steps that are affine in (x, score), and predictor-corrector made of them.


def affine(transition: Callable[..., transitions.Step]) -> Rule:
    """One score evaluation and one affine step per interval.

    Args:
      transition: a function of `transitions`: Euler-Maruyama, ancestral, reverse diffusion, DDIM and so on.
    """

    def step(field: Field, x: jax.Array, state: Any, interval: Interval) -> tuple[jax.Array, Any]:
        scale, weight, noise_var = interval.coefficients
        noise = normal(fold(interval.key, 0), x)
        return scale * x + weight * field.score_at(interval.t, x) + jnp.sqrt(noise_var) * noise, state

    step.__doc__ = transition.__doc__
    return Rule(step, 1, coefficients=lambda process, grid: transition(process, grid[1:], grid[:-1]))


def langevin(
    process: Process,
    score: Score,
    key: Key,
    x: jax.Array,
    t: jax.Array,
    cond: jax.Array | None = None,
    *,
    snr: float,
) -> jax.Array:
    """One Langevin step at fixed t [B]: x + eps score + sqrt(2 eps) xi with eps = 2 (snr sigma)^2.

    Song et al. 2021 (algorithms 4, 5) take eps = 2 (snr |xi| / |score|)^2 with norms averaged over the batch. Here the
    norms are replaced by their values at a perfect score of noise, |xi| / |score| = sigma. The step then does not
    depend on the state, so it leaves p_t invariant to first order, and a sample does not depend on its batch mates.
    """
    step = expand(2.0 * snr**2 * process.variance(t), x)
    return x + step * score(x, t, cond) + jnp.sqrt(2.0 * step) * normal(key, x)


def predictor_corrector(
    predictor: transitions.Predictor = transitions.reverse_diffusion,
    corrector_steps: CountOrZero = 1,
    snr: Positive = 0.16,
) -> Rule:
    """An affine step down to each time of the grid, then Langevin steps at that time (Song et al. 2021).

    Args:
      predictor: The affine step from one time of the grid to the next.
      corrector_steps: Number of Langevin steps after each predictor step.
      snr: Signal-to-noise ratio of a Langevin step, whose size is 2 (snr sigma)^2.
    """
    predict = affine(predictor)

    def step(field: Field, x: jax.Array, state: Any, interval: Interval) -> tuple[jax.Array, Any]:
        x, state = predict.step(field, x, state, interval)
        s = jnp.broadcast_to(interval.s, x.shape[:1])
        for k in range(corrector_steps):
            x = langevin(field.process, field.score, fold(interval.key, 1 + k), x, s, field.cond, snr=snr)
        return x, state

    return predict._replace(step=step, evaluations=1 + corrector_steps)
