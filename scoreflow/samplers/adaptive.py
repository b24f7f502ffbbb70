"""Adaptive ODE solves inside the compiled program, each example with its own step sizes.

Diffrax does the solving. Each example is a solve of its own (vmapped), so its result does not depend on the rest of the
batch, and its error norm is the largest over the leaves of its state, so that a scalar next to an image counts in full.
`integrate` is the solver, and `Adaptive` the sampler made of it.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from scoreflow.processes.sdes import Process, expand
from scoreflow.samplers.loop import SampleResult
from scoreflow.score import Score, denoised, probability_flow
from scoreflow.types import Count, Key, Positive

Clock = Literal["time", "log_snr"]

_STAGES = 6  # new evaluations in a step of Tsit5: seven stages, the first being the last of the step before
_START = 1  # the first stage of the first step


class Solution(NamedTuple):
    """Result of `integrate`.

    Attributes:
      y: state at t1.
      nfe: evaluations of the drift, [B] int32.
      n_rejected: rejected steps, [B] int32.
      ok: whether t1 was reached with finite values, [B] bool; y is meaningless where it was not.
    """

    y: Any
    nfe: jax.Array
    n_rejected: jax.Array
    ok: jax.Array


def _largest_rms(tree: Any) -> jax.Array:
    """The largest root mean square over the leaves."""
    return jnp.max(jnp.stack([optax.safe_root_mean_squares(leaf, 0.0) for leaf in jax.tree.leaves(tree)]))


def integrate(
    drift: Callable[[jax.Array, Any, Any], Any],
    y0: Any,
    t0: float | jax.Array,
    t1: float | jax.Array,
    args: Any = None,
    *,
    rtol: float | jax.Array = 1e-4,
    atol: float | jax.Array = 1e-4,
    max_steps: int = 1000,
) -> Solution:
    """Solves dy/dt = drift(t, y, args) from t0 to t1 (either may be the larger) by Tsit5 with error control.

    Args:
      drift: (t [B], y, args) -> like y.
      y0: pytree of arrays with leading axis B.
      t0, t1: where the solve begins and ends, scalars.
      args: pytree of arrays with leading axis B, or None.
      rtol, atol: a step is accepted where the largest over the leaves of rms(error / (atol + rtol |y|)) is at most 1.
      max_steps: after that many steps an example is given up: its `ok` is False.
    """

    def solve(y0: Any, args: Any) -> Solution:
        def field(t: ArrayLike, y: Any, args: Any) -> Any:
            batch_of_one = jax.tree.map(lambda leaf: leaf[None], (y, args))
            return jax.tree.map(lambda leaf: leaf[0], drift(jnp.reshape(t, (1,)), *batch_of_one))

        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5(),
            t0,
            t1,
            None,
            y0,
            args,
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, norm=_largest_rms),
            max_steps=max_steps,
            throw=False,
        )
        y = jax.tree.map(lambda leaf: leaf[0], solution.ys)
        finite = jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(y)])
        nfe = _STAGES * solution.stats["num_steps"] + _START
        return Solution(
            y,
            nfe,
            solution.stats["num_rejected_steps"],
            jnp.all(finite) & (solution.result == diffrax.RESULTS.successful),
        )

    return jax.vmap(solve)(y0, args)


def by_clock(
    process: Process, drift: Callable[[jax.Array, Any, Any], Any], t0: ArrayLike, t1: ArrayLike, clock: Clock
) -> tuple[Callable[[jax.Array, Any, Any], Any], tuple[jax.Array, jax.Array]]:
    """A drift over t as one over another time of the same curve, and the two ends in that time.

    Args:
      process: whose log-SNR may be the time: d log_snr / dt = -g^2 / sigma^2.
      drift: (t [B], y, args) -> like y.
      t0, t1: the ends.
      clock: `time` leaves all as it is.
    """
    ends = jnp.asarray(t0), jnp.asarray(t1)
    if clock == "time":
        return drift, ends

    def in_log_snr(log_snr: jax.Array, y: Any, args: Any) -> Any:
        t = process.inverse_log_snr(log_snr)
        dt = -process.variance(t) / process.diffusion_sq(t)
        return jax.tree.map(lambda leaf: expand(dt, leaf) * leaf, drift(t, y, args))

    return in_log_snr, (process.log_snr(ends[0]), process.log_snr(ends[1]))


class Adaptive(NamedTuple):
    """The probability-flow ODE to a tolerance, from x_init at grid[0] to grid[-1]; nfe differs between examples.

    It is a `Sample` that chooses its own times between the two ends of the grid, and ignores the key.

    Attributes:
      rtol: Relative tolerance of the error in each step.
      atol: Absolute tolerance of the error in each step.
      max_steps: Largest number of steps, after which an example is given up.
      clock: The solver's own time; the curve is the same, and the steps are others.
    """

    rtol: Positive = 1e-4
    atol: Positive = 1e-4
    max_steps: Count = 1000
    clock: Clock = "time"

    def __call__(
        self,
        process: Process,
        score: Score,
        key: Key,
        x_init: jax.Array,
        grid: jax.Array,
        cond: jax.Array | None = None,
        *,
        denoise: bool = True,
        trajectory: bool = False,
    ) -> SampleResult:
        """Samples; an example whose solve fails comes back as NaN. See `loop.sample` for the arguments.

        Raises:
          ValueError: if a trajectory is asked for.
        """
        if trajectory:
            raise ValueError("trajectory=True: the adaptive sampler keeps none, since its times differ by example")
        drift, ends = by_clock(process, probability_flow(process, score), grid[0], grid[-1], self.clock)
        options = {"rtol": self.rtol, "atol": self.atol, "max_steps": self.max_steps}
        solution = integrate(drift, x_init, *ends, cond, **options)
        x = solution.y
        if denoise:
            x = denoised(process, score, x, jnp.broadcast_to(grid[-1], x.shape[:1]), cond)
        x = jnp.where(solution.ok.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.nan)
        return SampleResult(x, solution.nfe + denoise)
