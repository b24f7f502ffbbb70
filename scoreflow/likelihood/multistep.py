"""The log-density of the probability-flow ODE by a fixed multistep rule, exact where the data are Gaussian.

With rho = sigma / alpha, q = log rho = -log_snr / 2 and eps = -sigma score, the probability flow of z = x / alpha is
dz/dq = rho eps. If the data were normal with mean m and covariance S (see `gaussian`), eps would be sigma C^(-1/2) w,
where C = alpha^2 S + sigma^2 and

    w = C^(-1/2) (x - alpha m)                                                                                      (1)

would not move. For any score, with G = sigma C^(-1/2) and the residual r = eps - G w,

    dw/dq = G r                                                                                                     (2)
    log p(x) = log terminal(x_T) + log det C_T / 2 - log det C_0 / 2 + int sigma tr(dr / dx) dq                     (3)

What is integrated is what the Gaussian does not explain: it is small and smooth in q, and it vanishes at both ends. A
random probe meets it alone, so that the Gaussian part of the trace has no noise.

(2) and (3) are derived here. That the score at high noise is nearly that of the data's Gaussian is known (Wang, Vastola
2024, arXiv 2412.09726). The rule is that of Adams as predictor and corrector with one evaluation at each node (Hairer,
Norsett, Wanner 1993, chapter III).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow import divergence as divergences
from scoreflow.gaussian import Gaussian, Spectral, spectral
from scoreflow.likelihood.ode import Density, LogProb, check_continuous, probes
from scoreflow.processes.sdes import Process
from scoreflow.samplers.adams import ORDER, adams
from scoreflow.score import Score
from scoreflow.types import Cond, Key


class Rule(NamedTuple):
    """Nodes and weights for K steps, which take K + 1 evaluations; as arrays, so that other nodes need no new program.

    Attributes:
      t: nodes, [K + 1].
      alpha, sigma: of the process there, [K + 1].
      predictor: weights of the values at the nodes before, the nearest first, [K + 1, ORDER]; 0 for the first node.
      corrector: the same with the node itself in front.
      live: whether there is a node, [K + 1] bool; those that `padded` adds are passed over.
    """

    t: jax.Array
    alpha: jax.Array
    sigma: jax.Array
    predictor: jax.Array
    corrector: jax.Array
    live: jax.Array


def padded(rule: Rule) -> Rule:
    """The same rule with copies of its last node at the end, up to a multiple of 128: one program for many lengths."""
    more = -len(rule.t) % 128
    longer = jax.tree.map(lambda leaf: jnp.pad(leaf, [(0, more)] + [(0, 0)] * (leaf.ndim - 1), mode="edge"), rule)
    return longer._replace(live=jnp.arange(len(longer.t)) < len(rule.t))


def q_at(process: Process, t: np.ndarray) -> np.ndarray:
    """q = log(sigma / alpha) at times t, in float64."""
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        return -0.5 * np.asarray(process.log_snr(np.asarray(t, np.float64)), np.float64)


def rule_at(process: Process, t: np.ndarray, order: int) -> Rule:
    """The rule of an order, from 1 to `ORDER`, with nodes at times t [K + 1], which rise or fall.

    The first steps look at the nodes that there are. May be called while a program is traced; t must be known then.
    """
    t = np.asarray(t, np.float64)
    if not (np.diff(t) > 0).all() and not (np.diff(t) < 0).all():
        raise ValueError("the times of nodes must rise, or fall, without repetition")
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        alpha, sigma = (np.asarray(f(t), np.float64) for f in (process.alpha, process.sigma))
    predictor, corrector = adams(q_at(process, t), order)
    arrays = (jnp.asarray(each, float) for each in (t, alpha, sigma, predictor, corrector))
    return Rule(*arrays, live=jnp.ones(len(t), bool))


class Nodes(NamedTuple):
    """Values at the nodes of a path.

    Attributes:
      slope: dw/dq, [K + 1, B, d].
      rate: the integrand of (3), [K + 1, B].
      pull: the gradient of log p_t with respect to w, [K + 1, B, d].
      bend: the gradient of `rate` + `pull`^T `slope`, in which `pull` is held, with respect to w, [K + 1, B, d].
    """

    slope: jax.Array
    rate: jax.Array
    pull: jax.Array
    bend: jax.Array


class Path(NamedTuple):
    """What a rule finds.

    Attributes:
      last: x at the last node, [B, ...].
      integral: that of (3), [B].
      nodes: what it met at its nodes, if that was asked for.
    """

    last: jax.Array
    integral: jax.Array
    nodes: Nodes | None


def follow(
    process: Process,
    score: Score,
    gaussian: Gaussian,
    rule: Rule,
    x: jax.Array,
    cond: Cond = None,
    *,
    probe: jax.Array | None = None,
    divergence: divergences.Divergence = divergences.hutchinson,
    keep: bool = False,
) -> Path:
    """Follows the probability flow along a rule's nodes, from data to noise or back.

    Args:
      process: the forward SDE.
      score: the score function.
      gaussian: of the data.
      rule: the nodes; x is at the first of them.
      x: [B, ...], float.
      cond: labels [B] int32 or None.
      probe: like x, for the divergence; None leaves it out, and `integral` is 0.
      divergence: its estimator.
      keep: whether `nodes` is wanted, which takes a gradient at every node; not of a padded rule.
    """
    n, shape = x.shape[0], x.shape
    of, basis = gaussian.of(cond, n), gaussian.basis

    def root(alpha: jax.Array, sigma: jax.Array) -> Spectral:
        return spectral(of, lambda v: jnp.sqrt(alpha**2 * v + sigma**2))

    def residual(x: jax.Array, node: Rule) -> jax.Array:
        precision = spectral(of, lambda v: node.sigma / (node.alpha**2 * v + node.sigma**2))
        known = precision.apply(basis, x.reshape(n, -1) - node.alpha * of.mean).reshape(shape)
        return -node.sigma * score(x, jnp.full(n, node.t), cond) - known

    def step(state: tuple, node: Rule) -> tuple[tuple, Nodes | None]:
        w, integral, slopes, rates = state
        spread, ahead = root(node.alpha, node.sigma), w + jnp.tensordot(node.predictor, slopes, 1)
        shrink = Spectral(*(node.sigma / each for each in spread))

        def evaluate(w: jax.Array) -> tuple[jax.Array, jax.Array]:
            x = (node.alpha * of.mean + spread.apply(basis, w)).reshape(shape)
            field = functools.partial(residual, node=node)
            value, trace = (field(x), jnp.zeros(n, x.dtype)) if probe is None else divergence(field, x, probe)
            return shrink.apply(basis, value.reshape(n, -1)), node.sigma * trace

        met = None
        if keep:
            (slope, rate), gradient = jax.vjp(evaluate, ahead)
            pull = -Spectral(*(1.0 / each**2 for each in shrink)).apply(basis, slope) - ahead
            met = Nodes(slope, rate, pull, *gradient((pull, jnp.ones_like(rate))))
        else:
            slope, rate = evaluate(ahead)
        slopes, rates = (jnp.concatenate([a[None], b[:-1]]) for a, b in ((slope, slopes), (rate, rates)))
        w = w + jnp.tensordot(node.corrector, slopes, 1)
        integral = integral + jnp.tensordot(node.corrector, rates, 1)
        return (w, integral, slopes, rates), met

    whiten = Spectral(*(1.0 / each for each in root(rule.alpha[0], rule.sigma[0])))
    w = whiten.apply(basis, x.reshape(n, -1) - rule.alpha[0] * of.mean)
    state = (w, jnp.zeros(n, x.dtype), jnp.zeros((ORDER, *w.shape), x.dtype), jnp.zeros((ORDER, n), x.dtype))
    if keep:
        (w, integral, _, _), nodes = jax.lax.scan(step, state, rule)
    else:
        pass_over = lambda state, node: (state, None)
        live_step = lambda state, node: jax.lax.cond(node.live, step, pass_over, state, node)
        (w, integral, _, _), nodes = jax.lax.scan(live_step, state, rule)
    last = rule.alpha[-1] * of.mean + root(rule.alpha[-1], rule.sigma[-1]).apply(basis, w)
    return Path(last.reshape(shape), integral, nodes)


def log_prob(
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
) -> LogProb:
    """Log-density of x under the ODE model, (3), by one evaluation of score and divergence at each node.

    Args:
      process: the forward SDE.
      score: the score function.
      terminal: the distribution assumed at T.
      key: PRNG key of the Rademacher probes, or a key for each example, [B], as for `ode.log_prob`.
      x: continuous data [B, ...], float, taken to be x at the first node.
      cond: labels [B] int32 or None.
      gaussian: of the data; with any other the limit of many nodes is the same.
      rule: nodes from t_min to the horizon, see `nodes`.
      divergence: `divergence.hutchinson` (unbiased) or `divergence.exact`.

    Raises:
      TypeError: if x is integer.
    """
    check_continuous(x)
    path = follow(process, score, gaussian, rule, x, cond, probe=probes(key, x), divergence=divergence)
    return density_of(path, terminal, gaussian.of(cond, x.shape[0]), rule)


def density_of(path: Path, terminal: Density, gaussian: Gaussian, rule: Rule) -> LogProb:
    """(3) of paths from t_min to the horizon, with a row of the Gaussian for each."""
    integral = path.integral + log_volume(gaussian, rule)
    prior = terminal.log_prob(path.last)
    ok = jnp.isfinite(prior + integral)
    nfe = jnp.full(ok.shape, jnp.sum(rule.live), jnp.int32)
    return LogProb(jnp.where(ok, prior + integral, jnp.nan), prior, integral, nfe, ok, path.last)


def log_volume(gaussian: Gaussian, rule: Rule) -> jax.Array:
    """log det C_T / 2 - log det C_0 / 2, for each row of a Gaussian, [B]."""

    def growth(v: jax.Array) -> jax.Array:
        before, after = (rule.alpha[i] ** 2 * v + rule.sigma[i] ** 2 for i in (0, -1))
        return 0.5 * jnp.log(after / before)

    d, k = gaussian.basis.shape
    return jnp.sum(growth(gaussian.variances), axis=1) + (d - k) * growth(gaussian.rest)
