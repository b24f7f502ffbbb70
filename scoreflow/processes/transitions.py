"""One reverse step from time t to s < t, for every sampler that is affine in (x, score):

    x_s = scale x_t + score_weight score(x_t, t) + sqrt(noise_var) xi,   xi ~ N(0, I)                                (1)

A sampler of this kind *is* its triple of coefficients. `samplers` runs them, and `theory.exact` computes the exact
distributions for Gaussian data from the same three numbers. a, b, c are those of `Process.reverse_integrals`, and
h = t - s.

Every function takes (process, s, t) and returns a `Step` whose fields have the broadcast shape of s and t.
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from scoreflow.processes.sdes import Process
from scoreflow.types import OneOf


class Step(NamedTuple):
    """Coefficients of (1)."""

    scale: jax.Array
    score_weight: jax.Array
    noise_var: jax.Array


def exponential_sde(process: Process, s: ArrayLike, t: ArrayLike) -> Step:
    """The reverse SDE solved exactly, except that the score is frozen at t."""
    a, b, c = process.reverse_integrals(s, t)
    return Step(a, b, c)


def euler_maruyama(process: Process, s: ArrayLike, t: ArrayLike) -> Step:
    """The reverse SDE by Euler-Maruyama in t."""
    h, g2 = jnp.asarray(t) - s, process.diffusion_sq(t)
    return Step(1.0 - process.drift_coeff(t) * h, g2 * h, g2 * h)


def reverse_diffusion(process: Process, s: ArrayLike, t: ArrayLike) -> Step:
    """The forward step s -> t, x_t = x_s / a + N(0, (c / a^2) I), reversed (Song et al. 2021, appendix E).

    For VP with beta_i = 1 - 1/a^2 this is their discrete scheme with scale 2 - sqrt(1 - beta_i).
    """
    a, _, c = process.reverse_integrals(s, t)
    return Step(2.0 - 1.0 / a, c / a**2, c / a**2)


def conditional_mean(process: Process, s: ArrayLike, t: ArrayLike) -> Step:
    """The exact E[x_s | x_t], with the noise of `exponential_sde`."""
    a, _, c = process.reverse_integrals(s, t)
    return Step(a, c / a, c)


def ancestral(process: Process, s: ArrayLike, t: ArrayLike) -> Step:
    """The DDPM posterior q(x_s | x_t, x_0) with x_0 replaced by its estimate; it adds no noise where sigma(s) = 0."""
    a, _, c = process.reverse_integrals(s, t)
    return Step(a, c / a, c * process.variance(s) / (a**2 * process.variance(t)))


def exponential_ode(process: Process, s: ArrayLike, t: ArrayLike) -> Step:
    """The probability-flow ODE solved exactly, except that the score is frozen at t."""
    a, b, _ = process.reverse_integrals(s, t)
    return Step(a, 0.5 * b, jnp.zeros_like(b))


def euler_ode(process: Process, s: ArrayLike, t: ArrayLike) -> Step:
    """The probability-flow ODE by Euler's method in t."""
    h = jnp.asarray(t) - s
    return Step(1.0 - process.drift_coeff(t) * h, 0.5 * process.diffusion_sq(t) * h, jnp.zeros_like(h))


def ddim(process: Process, s: ArrayLike, t: ArrayLike) -> Step:
    """The probability-flow ODE with the noise prediction instead of the score frozen at t (Song, Meng, Ermon 2021).

    score_weight is a sigma_t^2 - sigma_s sigma_t, computed as sigma_t c / (a sigma_t + sigma_s).
    """
    a, _, c = process.reverse_integrals(s, t)
    sigma_s, sigma_t = process.sigma(s), process.sigma(t)
    return Step(a, c * sigma_t / (a * sigma_t + sigma_s), jnp.zeros_like(c))


def denoise(process: Process, t: ArrayLike) -> Step:
    """E[x_0 | x_t] by Tweedie's formula: the step that leaves no noise."""
    alpha = process.alpha(t)
    return Step(1.0 / alpha, process.variance(t) / alpha, jnp.zeros_like(alpha))


TRANSITIONS = {
    "exponential": exponential_sde,
    "euler_maruyama": euler_maruyama,
    "reverse_diffusion": reverse_diffusion,
    "conditional_mean": conditional_mean,
    "ancestral": ancestral,
    "exponential_ode": exponential_ode,
    "euler_ode": euler_ode,
    "ddim": ddim,
}
Predictor = Annotated[Callable[..., Step], OneOf(TRANSITIONS)]
"""One of these functions, in a config by its name."""
