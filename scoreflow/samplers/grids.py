"""Time grids for samplers: [n + 1] decreasing from T to t_min, both exact. They differ in where the steps are spent.

Every grid is (process, n, *, t_min, ...) -> times. `n` is the number of steps, or the progress [n + 1] that has been
made at each time, from 0 at T to 1 at t_min: equal increments are what `n` steps mean.
"""

import jax
import jax.numpy as jnp

from scoreflow.processes.sdes import Process


def _progress(n: int | jax.Array) -> jax.Array:
    return jnp.linspace(0.0, 1.0, n + 1) if isinstance(n, int) else n


def _between(process: Process, progress: jax.Array, t: jax.Array, t_min: float) -> jax.Array:
    """Sets the two ends, which an inverse of log-SNR would return only to rounding."""
    return jnp.where(progress <= 0, process.horizon, jnp.where(progress >= 1, t_min, t))


def _mix(ends: jax.Array, progress: jax.Array) -> jax.Array:
    return ends[0] + progress * (ends[1] - ends[0])


def uniform(process: Process, n: int | jax.Array, *, t_min: float) -> jax.Array:
    """Equal steps in t."""
    progress = _progress(n)
    return _between(process, progress, process.horizon + progress * (t_min - process.horizon), t_min)


def log_snr(process: Process, n: int | jax.Array, *, t_min: float) -> jax.Array:
    """Equal steps in log-SNR."""
    progress = _progress(n)
    ends = process.log_snr(jnp.asarray([process.horizon, t_min]))
    return _between(process, progress, process.inverse_log_snr(_mix(ends, progress)), t_min)


def karras(process: Process, n: int | jax.Array, *, t_min: float, rho: float = 7.0) -> jax.Array:
    """Equal steps in (sigma / alpha)^(1 / rho) (Karras et al. 2022, equation 5)."""
    progress = _progress(n)
    ends = jnp.exp(-0.5 * process.log_snr(jnp.asarray([process.horizon, t_min])) / rho)
    times = process.inverse_log_snr(-2.0 * rho * jnp.log(_mix(ends, progress)))
    return _between(process, progress, times, t_min)
