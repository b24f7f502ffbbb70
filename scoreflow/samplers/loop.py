"""The loop over a time grid that every fixed-grid sampler runs, and the form of the rules that it takes.

A sampler adds a rule, never a loop: the scan, the denoising step, the trajectory and the count of score evaluations are
written here once. `rules` has examples of every kind of rule.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from scoreflow.processes.sdes import Process
from scoreflow.score import Score, denoised, probability_flow
from scoreflow.types import Flag, Key


class SampleResult(NamedTuple):
    """What a sampler returns.

    Attributes:
      x: samples [B, ...].
      nfe: evaluations of the score behind each sample, [B] int32.
      trajectory: x at every time of the grid, [N + 1, B, ...], where asked for, else None.
    """

    x: jax.Array
    nfe: jax.Array
    trajectory: jax.Array | None = None


class Sample(Protocol):
    """A sampler: `functools.partial(sample, rule)`, or an `adaptive.Adaptive`. See `sample` for the arguments."""

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
    ) -> SampleResult: ...


def fold(key: Key, data: ArrayLike) -> Key:
    """`jax.random.fold_in` for one key, or for each of keys [B]."""
    return jax.vmap(jax.random.fold_in, (0, None))(key, data) if key.ndim else jax.random.fold_in(key, data)


def normal(key: Key, like: jax.Array) -> jax.Array:
    """Standard normal numbers like `like` [B, ...], from one key, or for each example from its own of keys [B]."""
    if not key.ndim:
        return jax.random.normal(key, like.shape, like.dtype)
    return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:], like.dtype))(key)


class Field(NamedTuple):
    """What a rule may evaluate at a time t, a scalar or [B], and a state x [B, ...]. Each result is like x.

    Attributes:
      process: the forward SDE.
      score: (x [B, ...], t [B], cond) -> [B, ...].
      cond: labels [B], or None.
    """

    process: Process
    score: Score
    cond: jax.Array | None = None

    def score_at(self, t: ArrayLike, x: jax.Array) -> jax.Array:
        """The score, one evaluation."""
        return self.score(x, jnp.broadcast_to(t, x.shape[:1]), self.cond)

    def drift(self, t: ArrayLike, x: jax.Array) -> jax.Array:
        """The drift dx/dt of the probability-flow ODE, one evaluation of the score."""
        return probability_flow(self.process, self.score)(jnp.broadcast_to(t, x.shape[:1]), x, self.cond)

    def denoised(self, t: ArrayLike, x: jax.Array) -> jax.Array:
        """E[x_0 | x_t = x], one evaluation of the score."""
        return denoised(self.process, self.score, x, jnp.broadcast_to(t, x.shape[:1]), self.cond)


class Interval(NamedTuple):
    """One interval of the grid, as a rule sees it.

    Attributes:
      t: the time that x has, a scalar.
      s: the time to reach, a scalar below t.
      key: for this interval alone: one key, or [B]. Fold a different number into it for every draw.
      coefficients: this interval's slice of `Rule.coefficients`.
    """

    t: jax.Array
    s: jax.Array
    key: Key
    coefficients: Any


class Rule(NamedTuple):
    """What a sampler does in one interval.

    Attributes:
      step: (field, x [B, ...] at interval.t, state, interval) -> (x at interval.s, the next state).
      evaluations: of the score, in each step.
      init: (x_init) -> the first state, a pytree of arrays: what a multistep rule remembers. None without memory.
      coefficients: (process, grid [N + 1]) -> a pytree of arrays [N, ...] that depend on the times alone. They are
        computed for the whole grid at once, outside the loop.
    """

    step: Callable[[Field, jax.Array, Any, Interval], tuple[jax.Array, Any]]
    evaluations: int
    init: Callable[[jax.Array], Any] = lambda x: None
    coefficients: Callable[[Process, jax.Array], Any] = lambda process, grid: None


def sample(
    rule: Rule,
    process: Process,
    score: Score,
    key: Key,
    x_init: jax.Array,
    grid: jax.Array,
    cond: jax.Array | None = None,
    *,
    denoise: Flag = True,
    trajectory: bool = False,
) -> SampleResult:
    """Takes x from grid[0] to grid[-1] by one step of `rule` for each interval, and then removes the noise left there.

    With `denoise`, grid[-1] must be above 0 unless sigma(0) > 0. Without it, the samples have the distribution of x_t
    at t = grid[-1].

    Args:
      rule: what happens in an interval, see `rules`.
      process: the forward SDE.
      score: (x [B, ...], t [B], cond) -> [B, ...].
      key: one key for the whole batch, or one for each sample, [B]: then a sample does not depend on the rest of its
        batch. Deterministic rules ignore it.
      x_init: [B, ...], drawn from the terminal distribution.
      grid: times [N + 1], decreasing, see `grids`.
      cond: labels [B] that the score is given, or None.
      denoise: Finish with E[x_0 | x] at the last time, so that no noise is left in the samples.
      trajectory: whether to keep x at every time of the grid, before the denoising step.

    Returns:
      samples, and N * rule.evaluations score evaluations, with one more for the denoising step.
    """
    field, num_steps = Field(process, score, cond), grid.shape[0] - 1

    def body(carry: tuple[jax.Array, Any], inputs: Any) -> tuple[tuple[jax.Array, Any], jax.Array | None]:
        (x, state), (t, s, i, coefficients) = carry, inputs
        x, state = rule.step(field, x, state, Interval(t, s, fold(key, i), coefficients))
        return (x, state), (x if trajectory else None)

    intervals = grid[:-1], grid[1:], jnp.arange(num_steps), rule.coefficients(process, grid)
    (x, _), path = jax.lax.scan(body, (x_init, rule.init(x_init)), intervals)
    if path is not None:
        path = jnp.concatenate([x_init[None], path])
    if denoise:
        x = field.denoised(grid[-1], x)
    nfe = num_steps * rule.evaluations + denoise
    return SampleResult(x, jnp.full(x.shape[:1], nfe, jnp.int32), path)
