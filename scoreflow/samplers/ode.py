"""Second-order fixed-grid solvers of the probability-flow ODE. (Euler and DDIM are affine: see `samplers.affine`.)"""

import jax
import jax.numpy as jnp

from scoreflow.processes.sdes import Process
from scoreflow.samplers import SampleResult, run_steps
from scoreflow.score import ScoreFn, denoised, probability_flow


def heun(
    process: Process,
    score: ScoreFn,
    key: jax.Array,
    x_init: jax.Array,
    grid: jax.Array,
    cond: jax.Array | None = None,
    *,
    denoise: bool = True,
    trajectory: bool = False,
) -> SampleResult:
    """Heun's rule in t: two evaluations per interval, order 2. The score is evaluated at the last time of the grid."""
    del key
    drift = probability_flow(process, score)

    def step(carry, times):
        (x,) = carry
        t, s = (jnp.broadcast_to(time, x.shape[:1]) for time in times)
        h = times[1] - times[0]
        slope = drift(t, x, cond)
        return (x + 0.5 * h * (slope + drift(s, x + h * slope, cond)),)

    return run_steps(
        process,
        score,
        step,
        (x_init,),
        (grid[:-1], grid[1:]),
        x_init=x_init,
        t_last=grid[-1],
        nfe=2 * (grid.shape[0] - 1),
        cond=cond,
        denoise=denoise,
        trajectory=trajectory,
    )


def dpm_solver_pp_2m(
    process: Process,
    score: ScoreFn,
    key: jax.Array,
    x_init: jax.Array,
    grid: jax.Array,
    cond: jax.Array | None = None,
    *,
    denoise: bool = True,
    trajectory: bool = False,
) -> SampleResult:
    """DPM-Solver++(2M): exponential multistep in lambda = log_snr / 2 on the x_0 prediction, order 2.

        x_s = (sigma_s / sigma_t) x_t - alpha_s expm1(-h) D,  h = lambda_s - lambda_t,
        D = x0_t + (h / (2 h_before)) (x0_t - x0_before);  D = x0_t in the first step

    One evaluation per interval. Lu et al. 2022 (arXiv 2211.01095), algorithm 2.
    """
    del key
    lam = 0.5 * process.log_snr(grid)
    alpha, sigma = process.alpha(grid), process.sigma(grid)
    h = lam[1:] - lam[:-1]
    extrapolation = jnp.concatenate([jnp.zeros(1, h.dtype), 0.5 * h[1:] / h[:-1]])
    coefficients = (sigma[1:] / sigma[:-1], -alpha[1:] * jnp.expm1(-h), extrapolation)

    def step(carry, inputs):
        x, before = carry
        t, (scale, weight, extrapolation) = inputs
        x0 = denoised(process, score, x, jnp.broadcast_to(t, x.shape[:1]), cond)
        return scale * x + weight * (x0 + extrapolation * (x0 - before)), x0

    return run_steps(
        process,
        score,
        step,
        (x_init, jnp.zeros_like(x_init)),
        (grid[:-1], coefficients),
        x_init=x_init,
        t_last=grid[-1],
        nfe=grid.shape[0] - 1,
        cond=cond,
        denoise=denoise,
        trajectory=trajectory,
    )
