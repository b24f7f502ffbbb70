"""Time grids for samplers: [n + 1] decreasing from T to t_min, both exact. They differ in where the steps are spent.

A grid is a `TimeGrid`. With `n` an int, the grid has n steps. `n` may also be an array [n + 1], the progress that has
been made at each time, from 0 at T to 1 at t_min: equal increments of it are what `n` steps mean.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from scoreflow.processes.sdes import Process
from scoreflow.types import Number, Positive


class TimeGrid(Protocol):
    """A function of this module, perhaps with its own settings bound."""

    def __call__(self, process: Process, n: int | jax.Array, *, t_min: float) -> jax.Array:
        """Times [n + 1] from the horizon of the process down to t_min."""
        ...


def _progress(n: int | jax.Array) -> jax.Array:
    return jnp.linspace(0.0, 1.0, n + 1) if isinstance(n, int) else n


def _between(process: Process, progress: jax.Array, t: ArrayLike, t_min: float) -> jax.Array:
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


def karras(process: Process, n: int | jax.Array, *, t_min: float, rho: Positive = 7.0) -> jax.Array:
    """Equal steps in (sigma / alpha)^(1 / rho) (Karras et al. 2022, equation 5).

    Args:
      process: the forward SDE.
      n: the number of steps, or the progress at each time.
      t_min: the last time.
      rho: Exponent of the time grid; a larger one spends more of the steps at small noise.
    """
    progress = _progress(n)
    ends = jnp.exp(-0.5 * process.log_snr(jnp.asarray([process.horizon, t_min])) / rho)
    times = process.inverse_log_snr(-2.0 * rho * jnp.log(_mix(ends, progress)))
    return _between(process, progress, times, t_min)


def bell(
    process: Process,
    n: int | jax.Array,
    *,
    t_min: float,
    center: Number = 2.0,
    width: Positive = 3.0,
    floor: Positive = 0.3,
) -> jax.Array:
    """Steps in log-SNR with density floor + 1 / cosh((log_snr - center) / width): most of them where images form.

    Args:
      process: the forward SDE.
      n: the number of steps, or the progress at each time.
      t_min: the last time.
      center: Log-SNR where the steps are smallest.
      width: Of the bell in log-SNR.
      floor: Density far from the center, next to 1 there.
    """
    progress = _progress(n)
    ends = process.log_snr(jnp.asarray([process.horizon, t_min]))
    points = _mix(ends, jnp.linspace(0.0, 1.0, 1001))
    area = floor * points + 2.0 * width * jnp.arctan(jnp.tanh((points - center) / (2.0 * width)))
    log_snrs = jnp.interp(_mix(area[jnp.asarray([0, -1])], progress), area, points)
    return _between(process, progress, process.inverse_log_snr(log_snrs), t_min)
