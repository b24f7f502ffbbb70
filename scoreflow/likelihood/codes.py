"""What a differentiable likelihood in a fixed number of evaluations gives besides: gradients, and latent codes.

The code of x is the point x_T at which its probability flow ends (Song et al. 2021, arXiv 2011.13456, section 4.3). The
rule of `multistep` leads there and back, up to its own error, which falls with the number of nodes.
"""

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow import divergence as divergences
from scoreflow.gaussian import Gaussian
from scoreflow.likelihood.multistep import ORDER, Rule, follow, log_prob, rule_at
from scoreflow.likelihood.ode import Density
from scoreflow.processes.sdes import Process
from scoreflow.score import Score
from scoreflow.types import Cond, Key


def encode(
    process: Process,
    score: Score,
    x: jax.Array,
    cond: Cond = None,
    *,
    gaussian: Gaussian,
    t: np.ndarray,
    order: int = ORDER,
) -> jax.Array:
    """The latent codes x_T of data x [B, ...], like x.

    Args:
      process: the forward SDE.
      score: the score function.
      x: data at the first of the nodes, float.
      cond: labels [B] int32 or None.
      gaussian: of the data.
      t: nodes from t_min to the horizon, see `nodes`.
      order: of the rule.

    Examples:
      >>> import jax.numpy as jnp, scoreflow
      >>> from scoreflow import gaussian
      >>> from scoreflow.likelihood import nodes
      >>> process, score = scoreflow.vp_linear(), lambda x, t, cond=None: -x  # of N(0, I)
      >>> options = {"gaussian": gaussian.standard(2), "t": nodes.even(process, 1e-3, 1.0, 16)}
      >>> z = scoreflow.encode(process, score, jnp.asarray([[1.0, -2.0]]), **options)
      >>> print(z.round(2))  # nothing moves
      [[ 1. -2.]]
    """
    return follow(process, score, gaussian, rule_at(process, t, order), x, cond).last


def decode(
    process: Process,
    score: Score,
    z: jax.Array,
    cond: Cond = None,
    *,
    gaussian: Gaussian,
    t: np.ndarray,
    order: int = ORDER,
) -> jax.Array:
    """The data of latent codes z [B, ...]: the inverse of `encode` with the same nodes, up to the rule's error.

    Args:
      process: the forward SDE.
      score: the score function.
      z: codes at the last of the nodes, float.
      cond: labels [B] int32 or None.
      gaussian: of the data.
      t: nodes from t_min to the horizon, as for `encode`.
      order: of the rule.

    Examples:
      >>> import jax.numpy as jnp, scoreflow
      >>> from scoreflow import gaussian
      >>> from scoreflow.likelihood import nodes
      >>> process = scoreflow.vp_linear()
      >>> variance = lambda t: 0.25 * process.alpha(t) ** 2 + process.variance(t)
      >>> score = lambda x, t, cond=None: -x / variance(t)[:, None]  # of N(0, 0.25 I)
      >>> options = {"gaussian": gaussian.standard(2, variance=0.25), "t": nodes.even(process, 1e-3, 1.0, 16)}
      >>> print(scoreflow.decode(process, score, jnp.asarray([[1.0, -2.0]]), **options).round(2))
      [[ 0.5 -1. ]]
    """
    return follow(process, score, gaussian, rule_at(process, np.asarray(t)[::-1], order), z, cond).last


def interpolate(first: jax.Array, last: jax.Array, count: int) -> jax.Array:
    """`count` codes from one [...] to another on a great circle, [count, ...], whose norms change evenly.

    Codes are normal, so that almost all of them have nearly the same norm; those on a straight line do not.

    Args:
      first: the code at the beginning, [...].
      last: the code at the end, like it.
      count: how many, both ends among them.

    Examples:
      >>> import jax.numpy as jnp, scoreflow
      >>> print(scoreflow.interpolate(jnp.asarray([1.0, 0.0]), jnp.asarray([0.0, 1.0]), 3).round(3))
      [[1.    0.   ]
       [0.707 0.707]
       [0.    1.   ]]
    """
    norms = jnp.linalg.norm(first), jnp.linalg.norm(last)
    angle = jnp.arccos(jnp.clip(jnp.vdot(first, last) / (norms[0] * norms[1]), -1.0, 1.0))
    share = jnp.linspace(0.0, 1.0, count).reshape(-1, *[1] * first.ndim)
    begin, end = (jnp.sinc(s * angle / jnp.pi) * s / jnp.sinc(angle / jnp.pi) for s in (1.0 - share, share))
    size = (1.0 - share) * norms[0] + share * norms[1]
    return size * (begin * (first / norms[0])[None] + end * (last / norms[1])[None])


def log_prob_and_grad(
    process: Process,
    score: Score,
    terminal: Density,
    key: Key,
    x: jax.Array,
    cond: Cond = None,
    *,
    gaussian: Gaussian,
    rule: Rule,
    divergence: divergences.Divergence = divergences.hutchinson,
) -> tuple[jax.Array, jax.Array]:
    """log p(x) in nats, [B], and its gradient with respect to x, like x, by reverse mode through the rule.

    With a random probe both are those of the estimate: the gradient is unbiased, too. The gradient of a perfect model
    is its score at t_min.

    Args:
      process: the forward SDE.
      score: the score function.
      terminal: the distribution assumed at the horizon.
      key: PRNG key of the random probes, or a key for each example, [B].
      x: continuous data [B, ...], float, taken to be x at the first node.
      cond: labels [B] int32 or None.
      gaussian: of the data.
      rule: nodes from t_min to the horizon.
      divergence: `divergence.hutchinson` (unbiased) or `divergence.exact`.

    Examples:
      >>> import jax, jax.numpy as jnp, scoreflow
      >>> from scoreflow import gaussian
      >>> from scoreflow.likelihood import multistep, nodes
      >>> process, score = scoreflow.vp_linear(), lambda x, t, cond=None: -x  # of N(0, I)
      >>> rule = multistep.rule_at(process, nodes.even(process, 1e-3, 1.0, 16), order=3)
      >>> options = {"gaussian": gaussian.standard(2), "rule": rule}
      >>> end, key, x = scoreflow.prior(process), jax.random.key(0), jnp.asarray([[1.0, -2.0]])
      >>> logp, gradient = scoreflow.log_prob_and_grad(process, score, end, key, x, **options)
      >>> print(f"{logp[0]:.2f}", gradient.round(2))  # the gradient is the score
      -4.34 [[-1.  2.]]
    """

    def total(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        options = {"gaussian": gaussian, "rule": rule, "divergence": divergence}
        logp = log_prob(process, score, terminal, key, x, cond, **options).logp
        return jnp.sum(logp), logp

    (_, logp), gradient = jax.value_and_grad(total, has_aux=True)(x)
    return logp, gradient
