"""Samplers whose step is affine in (x, score): the triples of `transitions`, and predictor-corrector around them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from scoreflow.processes import transitions
from scoreflow.processes.sdes import Process, expand
from scoreflow.samplers import SampleResult, fold, normal, run_steps
from scoreflow.score import ScoreFn


def affine(
    process: Process,
    score: ScoreFn,
    key: jax.Array,
    x_init: jax.Array,
    grid: jax.Array,
    cond: jax.Array | None = None,
    *,
    transition: Callable[..., transitions.Step],
    denoise: bool = True,
    trajectory: bool = False,
) -> SampleResult:
    """One score evaluation and one affine step per interval of the grid.

    Args:
      transition: a function of `transitions`: Euler-Maruyama, ancestral, reverse diffusion, DDIM and so on.
    """
    return predictor_corrector(
        process,
        score,
        key,
        x_init,
        grid,
        cond,
        transition=transition,
        corrector_steps=0,
        denoise=denoise,
        trajectory=trajectory,
    )


def langevin(
    process: Process, score: ScoreFn, key: jax.Array, x: jax.Array, t: jax.Array, cond=None, *, snr: float
) -> jax.Array:
    """One Langevin step at fixed t [B]: x + eps score + sqrt(2 eps) xi with eps = 2 (snr sigma)^2.

    Song et al. 2021 (algorithms 4, 5) take eps = 2 (snr |xi| / |score|)^2 with norms averaged over the batch. Here the
    norms are replaced by their values at a perfect score of noise, |xi| / |score| = sigma: the step does not depend on
    the state, so it leaves p_t invariant to first order, nor a sample on its batch mates.
    """
    step = expand(2.0 * snr**2 * process.variance(t), x)
    return x + step * score(x, t, cond) + jnp.sqrt(2.0 * step) * normal(key, x)


def predictor_corrector(
    process: Process,
    score: ScoreFn,
    key: jax.Array,
    x_init: jax.Array,
    grid: jax.Array,
    cond: jax.Array | None = None,
    *,
    transition: Callable[..., transitions.Step] = transitions.reverse_diffusion,
    corrector_steps: int = 1,
    snr: float = 0.16,
    denoise: bool = True,
    trajectory: bool = False,
) -> SampleResult:
    """An affine step down to each time of the grid, then `corrector_steps` Langevin steps there (Song et al. 2021).

    Args:
      transition: the predictor, a function of `transitions`.
      corrector_steps: Langevin steps after each predictor step.
      snr: size of a Langevin step, see `langevin`.
    """
    n = grid.shape[0] - 1
    steps = transition(process, grid[1:], grid[:-1])

    def step(carry, inputs):
        (x,) = carry
        t, s, (scale, weight, noise_var), i = inputs
        batch, key_step = x.shape[:1], fold(key, i)
        noise = normal(fold(key_step, 0), x)
        x = scale * x + weight * score(x, jnp.broadcast_to(t, batch), cond) + jnp.sqrt(noise_var) * noise
        for k in range(corrector_steps):
            x = langevin(process, score, fold(key_step, 1 + k), x, jnp.broadcast_to(s, batch), cond, snr=snr)
        return (x,)

    return run_steps(
        process,
        score,
        step,
        (x_init,),
        (grid[:-1], grid[1:], steps, jnp.arange(n)),
        x_init=x_init,
        t_last=grid[-1],
        nfe=n * (1 + corrector_steps),
        cond=cond,
        denoise=denoise,
        trajectory=trajectory,
    )
