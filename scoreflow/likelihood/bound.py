"""An upper bound on -log p for the SDE model.

The SDE model, ending with the Gaussian decoder N(E[x_0 | x_{t_min}], (sigma / alpha)^2) at t_min (Song et al. 2021,
arXiv 2101.09258, theorem 3 and its appendix): -log p(x) is at most the sum of

    prior      -E log terminal(x_T)                                                                                 (3)
    diffusion  1/2 int g^2/sigma^2 (E |sigma score + noise|^2 - d) dt - d int f dt                                  (4)
    offset     -d log alpha + (E |sigma score + noise|^2 - d) / 2 at t_min                                          (5)

with x_t, x_T perturbed from x. In (4), d int g^2/sigma^2 dt is the fall of log-SNR and int f dt that of log alpha, so
that neither is estimated. Leaving (5) out is off by the entropy of the last noise: some 8 bits per dimension.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scoreflow.gaussian import Gaussian
from scoreflow.likelihood import control
from scoreflow.likelihood.ode import Density, check_continuous
from scoreflow.objectives import times
from scoreflow.objectives.times import TimeSampler
from scoreflow.processes.sdes import Process, expand
from scoreflow.score import Score
from scoreflow.types import Key


class Bound(NamedTuple):
    """An upper bound on -log p in nats and its terms, [B] each; equations (3) to (5) of this file.

    Attributes:
      total: `prior` + `diffusion` + `offset`, unbiased for the bound.
      prior: of x_T under the terminal distribution.
      diffusion: of the path; mostly negative.
      offset: of what lies below t_min.
    """

    total: jax.Array
    prior: jax.Array
    diffusion: jax.Array
    offset: jax.Array


def bound(
    process: Process,
    score: Score,
    terminal: Density,
    key: Key,
    x: jax.Array,
    cond: jax.Array | None = None,
    *,
    t_min: float,
    num_times: int = 100,
    sample_times: TimeSampler = times.importance,
    gaussian: Gaussian | None = None,
) -> Bound:
    """Bound on -log p(x) of the SDE model (Song et al. 2021, arXiv 2101.09258), from times drawn for each example.

    With a Gaussian of the data its own terms under the same noise are taken away and their means are added (`control`):
    the bound is the same, with less noise the better the Gaussian is.

    Args:
      process: the forward SDE.
      score: the score function.
      terminal: the distribution assumed at T.
      key: PRNG key of times and noise, or a key for each example, [B].
      x: continuous data [B, ...], float.
      cond: labels [B] int32 or None.
      t_min: where the path ends and the decoder begins.
      num_times: evaluations of the score for each example, each with noise of its own; as many again for (5).
      sample_times: distribution of the times; importance sampling keeps the variance low.
      gaussian: of the data, for control variates; None for none.

    Raises:
      TypeError: if x is integer, see `log_prob`.

    Examples:
      >>> import jax, jax.numpy as jnp, scoreflow
      >>> from scoreflow import gaussian
      >>> process, score = scoreflow.vp_linear(), lambda x, t, cond=None: -x  # of N(0, I)
      >>> key, x = jax.random.key(0), jnp.asarray([[0.0, 0.0], [1.0, 1.0]])
      >>> options = {"t_min": 1e-3, "gaussian": gaussian.standard(2)}  # which leaves no noise for Gaussian data
      >>> result = scoreflow.bound(process, score, scoreflow.prior(process), key, x, **options)
      >>> [f"{total:.2f}" for total in result.total]  # log(2 pi), and 1 more
      ['1.84', '2.84']
    """
    check_continuous(x)
    n, size = x.shape[0], x[0].size
    keys = jax.vmap(lambda key: jax.random.split(key, 4))(key if key.ndim else jax.random.split(key, n))
    t, inv_density = jax.vmap(lambda key: sample_times(process, key, num_times, t_min=t_min))(keys[:, 0])
    of = None if gaussian is None else gaussian.of(cond, n)
    excess = _excess(process, score, x, cond, of)
    first, end = (jnp.asarray(t, x.dtype) for t in (t_min, process.horizon))

    def at(i):
        fold = jax.vmap(lambda key: jax.random.fold_in(key, i))
        rate = process.diffusion_sq(t[:, i]) / process.variance(t[:, i])
        path = 0.5 * inv_density[:, i] * rate * excess(fold(keys[:, 1]), t[:, i])
        last = 0.5 * excess(fold(keys[:, 2]), jnp.full(n, first))
        x_end, noise = _perturbed(process, fold(keys[:, 3]), x, jnp.full(n, end))
        prior = -terminal.log_prob(x_end)
        return path, last, prior - 0.5 * _known(control.whitened, process, x, noise, jnp.full(n, end), of)

    path, last, prior = jax.tree.map(lambda leaf: leaf.mean(0), jax.lax.map(at, jnp.arange(num_times)))
    if of is not None:
        flat, low, high = x.reshape(n, -1), *(jnp.exp(-process.log_snr(t)) for t in (first, end))
        path = path + control.error_area(of, flat, low, high)
        last = last + 0.5 * control.mean_error(of, flat, low)
        prior = prior + 0.5 * control.mean_whitened(of, flat, process.alpha(end), process.sigma(end))
    fall = process.log_snr(t_min) - process.log_snr(process.horizon)
    shrunk = process.log_alpha(process.horizon) - process.log_alpha(t_min)
    diffusion = path - size * (0.5 * fall + shrunk)
    offset = last - size * (0.5 + process.log_alpha(first))
    return Bound(prior + diffusion + offset, prior, diffusion, offset)


def bound_noise(
    process: Process,
    score: Score,
    key: Key,
    x: jax.Array,
    cond: jax.Array | None = None,
    *,
    t_min: float,
    gaussian: Gaussian | None = None,
    cells: int = 64,
) -> jax.Array:
    """The variance over the noise of what is averaged in (4), at the middles of cells in log-SNR, [B, cells].

    An unbiased estimate from two draws; times with a density in proportion to the root of its mean (`times.by_cells`)
    leave the least noise in the bound.
    """
    top, bottom = process.log_snr(t_min), process.log_snr(process.horizon)
    middles = process.inverse_log_snr(top - (top - bottom) / cells * (jnp.arange(cells) + 0.5))
    n = x.shape[0]
    excess = _excess(process, score, x, cond, None if gaussian is None else gaussian.of(cond, n))
    keys = jax.vmap(lambda key: jax.random.split(key, 2))(key if key.ndim else jax.random.split(key, n))

    def at(each):
        i, t = each
        fold = jax.vmap(lambda key: jax.random.fold_in(key, i))
        one, other = (excess(fold(keys[:, draw]), jnp.full(n, t, x.dtype)) for draw in (0, 1))
        return 0.5 * (one - other) ** 2

    return jax.lax.map(at, (jnp.arange(cells), middles)).T


def _perturbed(process: Process, keys: Key, x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x_t [B, ...] and the noise in it, each example at its time and from its key."""
    noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
    return expand(process.alpha(t), x) * x + expand(process.sigma(t), x) * noise, noise


def _known(part: Callable, process: Process, x: jax.Array, noise: jax.Array, t: jax.Array, of: Gaussian | None) -> Any:
    """The square of a part of the Gaussian's under the same noise, [B]; 0 without one."""
    if of is None:
        return 0.0
    n = x.shape[0]
    given = part(of, x.reshape(n, -1), noise.reshape(n, -1), process.alpha(t), process.sigma(t))
    return jnp.sum(given**2, axis=1)


def _excess(process: Process, score: Score, x: jax.Array, cond: Any, of: Gaussian | None) -> Callable:
    """(keys [B], t [B]) -> |sigma score + noise|^2 of each example, less that of the Gaussian, [B]."""

    def excess(keys: Key, t: jax.Array) -> jax.Array:
        xt, noise = _perturbed(process, keys, x, t)
        error = expand(process.sigma(t), x) * score(xt, t, cond) + noise
        return jnp.sum(error.reshape(x.shape[0], -1) ** 2, axis=1) - _known(control.error, process, x, noise, t, of)

    return excess


def one_time_bound(process: Process, terminal: Density, t_min: float) -> Callable[..., jax.Array]:
    """(score, key, x [B, ...], cond) -> the bound in nats, [B], by one time for each example: noisy, and unbiased."""

    def estimate(score, key, x, cond=None):
        return bound(process, score, terminal, key, x, cond, t_min=t_min, num_times=1).total

    return estimate
