"""Time grids for samplers: [n + 1] decreasing from T to t_min, both exact. They differ in where the steps are spent."""

import jax
import jax.numpy as jnp

from scoreflow.sdes import Process


def _between(process: Process, t: jax.Array, t_min: float) -> jax.Array:
    """Sets the two ends, which an inverse of log-SNR would return only to rounding."""
    return t.at[0].set(process.horizon).at[-1].set(t_min)


def uniform(process: Process, n: int, *, t_min: float) -> jax.Array:
    """Equal steps in t."""
    return _between(process, jnp.linspace(process.horizon, t_min, n + 1), t_min)


def log_snr(process: Process, n: int, *, t_min: float) -> jax.Array:
    """Equal steps in log-SNR."""
    ends = process.log_snr(jnp.asarray([process.horizon, t_min]))
    return _between(process, process.inverse_log_snr(jnp.linspace(ends[0], ends[1], n + 1)), t_min)


def karras(process: Process, n: int, *, t_min: float, rho: float = 7.0) -> jax.Array:
    """Equal steps in (sigma / alpha)^(1 / rho) (Karras et al. 2022, equation 5)."""
    ends = process.log_snr(jnp.asarray([process.horizon, t_min]))
    powers = jnp.exp(-0.5 * ends / rho)
    ratio = jnp.linspace(powers[0], powers[1], n + 1)
    return _between(process, process.inverse_log_snr(-2.0 * rho * jnp.log(ratio)), t_min)
