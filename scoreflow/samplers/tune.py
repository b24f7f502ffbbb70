"""The times at which a sampler with few evaluations ends closest to the probability-flow ODE, for a trained model.

Where a sampler on a fixed grid ends is a differentiable function of the grid's times. They are moved by gradient
descent so that a few samples end near the ODE's own solution from the same noise, as by Tong et al. 2024 (arXiv
2405.15506). There the noise and the times that the network is told are moved too, and distances are those of a
perceptual feature. Here the grid alone is moved, and the distance of a sample is the root mean square over dimensions,
in the units of x. Its mean is minimized, not that of its square, which a few samples between two modes would rule.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from scoreflow.processes.sdes import Process
from scoreflow.runs import parallel
from scoreflow.runs.errors import UserError
from scoreflow.samplers import grids, rules
from scoreflow.samplers.sampler import Sampler
from scoreflow.score import Score
from scoreflow.types import Key, Params

ITERATIONS = 50
VERSION = 1
"""Of how times are found: those that were kept by another are looked for again."""
_FINE = 100  # steps of the ODE's own solution
_RATE = 0.15  # of Adam, in the logarithm of a step's share
_TABLE = 2001
_TINY = 1e-12  # below a square distance, whose root would have no gradient at 0
_REVERSE = 4  # evaluations in whose time one is done, done again and differentiated


class Tuned(NamedTuple):
    """Times of a grid, and what was gained.

    Attributes:
      times: [n + 1], from the horizon down to the last time.
      before: mean distance of samples to those of the ODE, with the grid as it was.
      after: the same with these times; both of samples that the gradient has not seen.
      evaluations: of the network that the search took, for all samples together; one with its gradient counts as four.
    """

    times: np.ndarray
    before: float
    after: float
    evaluations: int


class Pilot(NamedTuple):
    """Samples on which times are tuned.

    Attributes:
      params: of the model.
      keys: a key for each sample, [B], B >= 2.
      x_init: [B, ...] at the horizon.
      cond: labels [B], or None.
    """

    params: Params
    keys: Key
    x_init: jax.Array
    cond: jax.Array | None = None


def pilot_of(params: Params, key: Key, size: int, terminal: Any, shape: tuple[int, ...], num_classes: int = 0) -> Pilot:
    """Samples for `tune`, the same on any number of devices.

    Args:
      params: of the model.
      key: PRNG key.
      size: how many; 2 at least.
      terminal: the distribution at the horizon.
      shape: of one x.
      num_classes: of labels, which come in turn in each half; 0 for none.
    """
    size = max(size, 2)
    key, key_init = jax.random.split(key)
    begin = np.asarray(terminal.sample(key_init, (size, *shape)))
    cond = (np.arange(size) % (size // 2) % num_classes).astype(np.int32) if num_classes else None
    place = parallel.replicate if size % parallel.device_count() else parallel.shard
    return Pilot(params, *place((jax.random.split(key, size), begin, cond)))


def tune(
    sampler: Sampler,
    score_of: Callable[[Params], Score],
    pilot: Pilot,
    *,
    iterations: int = ITERATIONS,
    watch: Callable[[range], Iterable[int]] = iter,
) -> Tuned:
    """Moves the times of a sampler's grid; the first and the last stay where they are.

    The gradient is that of the first half of the samples, and the best times are those for the other half.

    Args:
      sampler: with a fixed grid and a rule that draws no noise.
      score_of: params -> the score function.
      pilot: the samples, which may be split over devices.
      iterations: steps of the descent, each with one gradient through all steps of the sampler.
      watch: passes their numbers on, and may show progress.

    Raises:
      UserError: if some of the samples are not finite.
    """
    distances = _distances(sampler, score_of)
    measured = parallel.jit(lambda *given: jnp.stack(distances(*given)), out_shardings=parallel.replicated())
    exactly = {"method": rules.HEUN, "make_grid": grids.log_snr, "steps": _FINE, "scale_steps": False}
    fine = sampler.changed(**exactly, guidance=sampler.guidance)
    exact = parallel.jit(lambda pilot: fine.draw(score_of(pilot.params), *pilot[1:]).x)(pilot)
    grid, both = sampler.grid, measured(pilot, exact, sampler.grid)
    if not np.isfinite(both).all():
        raise UserError(f"pilot = {len(pilot.x_init)}: some of these samples are not finite, so times cannot be tuned")
    before = float(both[1])

    at, optimizer = _times_of(sampler.process, grid), optax.adam(optax.cosine_decay_schedule(_RATE, iterations))

    def loss(shares: jax.Array, pilot: Pilot, exact: jax.Array) -> tuple[jax.Array, jax.Array]:
        seen, others = distances(pilot, exact, at(shares))
        return jnp.log(seen), others

    def step(shares: jax.Array, state: Any, pilot: Pilot, exact: jax.Array) -> tuple:
        (_, others), gradient = jax.value_and_grad(loss, has_aux=True)(shares, pilot, exact)
        update, state = optimizer.update(jnp.nan_to_num(gradient), state)
        return others, optax.apply_updates(shares, update), state

    step = parallel.jit(step, out_shardings=parallel.replicated())
    shares = _shares(sampler.process, grid)
    state, best = optimizer.init(shares), (before, grid)
    for _ in watch(range(iterations)):
        others, moved, state = step(shares, state, pilot, exact)
        if float(others) < best[0]:
            best = float(others), at(shares)
        shares = moved
    steps = len(grid) * (1 + _REVERSE * iterations)
    evaluations = len(pilot.x_init) * (2 * _FINE + 1 + steps) * (1 if sampler.guidance == 1.0 else 2)
    return Tuned(np.asarray(best[1]), before, best[0], evaluations)


def _distances(sampler: Sampler, score_of: Callable[[Params], Score]) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """(pilot, exact [B, ...], grid) -> mean distances of the first half of the samples, and of the other."""

    def distances(pilot: Pilot, exact: jax.Array, grid: jax.Array) -> tuple[jax.Array, jax.Array]:
        score = jax.checkpoint(score_of(pilot.params))  # otherwise the activations of every step would be held
        apart = (sampler._replace(grid=grid).draw(score, *pilot[1:]).x - exact).reshape(len(exact), -1)
        each = jnp.sqrt(jnp.mean(apart**2, axis=1) + _TINY)
        return each[: len(each) // 2].mean(), each[len(each) // 2 :].mean()

    return distances


def _shares(process: Process, grid: jax.Array) -> jax.Array:
    """Logarithms of the steps in log-SNR, as shares of the whole."""
    log_snr = process.log_snr(grid)
    return jnp.log(jnp.diff(log_snr) / (log_snr[-1] - log_snr[0]))


def _times_of(process: Process, grid: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """shares [n] -> times [n + 1] with a grid's ends, by a table: not every process has an inverse with a slope."""
    ends = grid[jnp.asarray([0, -1])]
    first, last = process.log_snr(ends)
    even = jnp.linspace(0.0, 1.0, _TABLE)
    table = process.inverse_log_snr(first + even * (last - first)).at[jnp.asarray([0, -1])].set(ends)

    def times(shares: jax.Array) -> jax.Array:
        inner = jnp.interp(jnp.cumsum(jax.nn.softmax(shares))[:-1], even, table)
        return jnp.concatenate([ends[:1], inner, ends[1:]])

    return times
