"""Second- and third-order denoising score matching, for the likelihood of the ODE model.

First-order matching bounds the KL divergence of the SDE model, not that of the ODE model; the latter is bounded by the
errors of the score s, of its Jacobian J and of grad tr J together (Lu et al. 2022, arXiv 2206.08265). With
x_t = alpha x_0 + sigma noise and the residual l = sigma s + noise, noise given x_t has mean -sigma s, covariance
I + sigma^2 J and third cumulant -sigma^3 grad^3 log q at the true score, hence

    order1        |l|^2                                                                                            (1)
    order2        |M - l l^T|_F^2,  M = sigma^2 J + I                                                              (2)
    order2_trace  (tr M - |l|^2)^2                                                                                 (3)
    order3        |sigma^3 grad tr J + (|l|^2 - tr M) l - 2 M l|^2                                                 (4)

for few dimensions, and along one Rademacher probe v for many, w = v.l:

    order2        |M v - w l|^2                  whose mean over v is (2)                                          (5)
    order2_trace  (v^T M v - w^2)^2              at least (3), with the same minimizer                             (6)
    order3        |sigma^3 grad(v^T J v) + (w^2 - v^T M v) l - 2 w M v|^2                                          (7)

or, cheapest, from the probe the trace alone, with |l|^2 as it is (Zheng et al. 2023, arXiv 2305.03935):

    order2_trace  (v^T M v - |l|^2)^2             at least (3); where M is not diagonal, with another minimizer     (8)

l in (2) to (8), and M in (4) and (7), are targets: no gradient flows through them. With gradients the minimum moves,
wherever the third derivative of log q is not 0. Targets are corrected by the present residual, so an error e of the
score costs the second order |e|^2 and not |e|. At the minimum no term is 0 (their values for Gaussian data are in the
tests), so their size says little: judge by the likelihood.
"""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp

from scoreflow.divergence import directional, inner
from scoreflow.objectives import combine
from scoreflow.objectives.protocols import LossTerms, Penalty
from scoreflow.objectives.weights import Weight, noise_weight
from scoreflow.processes.sdes import Process, expand
from scoreflow.score import Score
from scoreflow.types import Check, Cond, CountOrZero, Flag, Key, NonNegative, OneOf


def projected(fn: Callable, key: Key, x: jax.Array, noise: jax.Array, sigma: jax.Array, *, third: bool) -> LossTerms:
    """(1), (5), (6) and, if asked for, (7), [B] each, with one probe for every example.

    Args:
      fn: x -> score, at fixed times.
      key: PRNG key of the probes.
      x, noise: noised data and the noise in it, [B, ...].
      sigma: [B].
      third: whether to compute the third order.
    """
    v, scale = jax.random.rademacher(key, x.shape, x.dtype), expand(sigma, x)
    derivatives = directional(fn, x, v, third=third)
    residual = scale * derivatives.value + noise
    target, moved = jax.lax.stop_gradient(residual), scale**2 * derivatives.product + v
    w = inner(v, target)
    second, trace = moved - expand(w, x) * target, inner(v, moved) - w**2
    terms = {"order1": inner(residual, residual), "order2": inner(second, second), "order2_trace": trace**2}
    if derivatives.slope is not None:
        stopped = jax.lax.stop_gradient(moved)
        pull = expand(w**2 - inner(v, stopped), x) * target - 2.0 * expand(w, x) * stopped
        error = scale**3 * derivatives.slope + pull
        terms["order3"] = inner(error, error)
    return terms


def trace(fn: Callable, key: Key, x: jax.Array, noise: jax.Array, sigma: jax.Array, *, third: bool) -> LossTerms:
    """(1) and (8), [B] each. No third order. See `projected`.

    (8) is (3) plus twice the sum of squares of M's off-diagonal entries, which it therefore also pulls to 0 (derived
    here). In terms of a velocity network's error it is the residual of Zheng et al. times -alpha (VP) or -sqrt(2) alpha
    (straight path): their objective is coefficient2_trace = 0.1, power2_trace = 2 with the weight on.
    """
    if third:
        raise ValueError("the trace alone has no third order")
    v, scale = jax.random.rademacher(key, x.shape, x.dtype), expand(sigma, x)
    derivatives = directional(fn, x, v, third=False)
    residual = scale * derivatives.value + noise
    target = jax.lax.stop_gradient(residual)
    error = inner(v, scale**2 * derivatives.product + v) - inner(target, target)
    return {"order1": inner(residual, residual), "order2_trace": error**2}


def exact(fn: Callable, key: Key, x: jax.Array, noise: jax.Array, sigma: jax.Array, *, third: bool) -> LossTerms:
    """(1), (2), (3) and, if asked for, (4), [B] each: d directions, so for few dimensions. See `projected`."""
    del key
    n, d = x.shape[0], x[0].size
    basis = jnp.broadcast_to(jnp.eye(d, dtype=x.dtype).reshape(d, 1, *x.shape[1:]), (d, *x.shape))

    def along(v):
        derivatives = directional(fn, x, v, third=third)
        return derivatives.value, derivatives.product, derivatives.slope

    value, product, slope = jax.vmap(along, out_axes=(None, 0, 0 if third else None))(basis)
    sigma = sigma[:, None]
    residual = sigma * value.reshape(n, d) + noise.reshape(n, d)
    target = jax.lax.stop_gradient(residual)
    jacobian = jnp.moveaxis(product.reshape(d, n, d), 0, 2)
    moment = sigma[..., None] ** 2 * jacobian + jnp.eye(d, dtype=x.dtype)[None]
    second = moment - target[:, :, None] * target[:, None, :]
    trace = jnp.trace(moment, axis1=1, axis2=2) - inner(target, target)
    terms = {"order1": inner(residual, residual), "order2": jnp.sum(second**2, axis=(1, 2)), "order2_trace": trace**2}
    if slope is not None:
        stopped = jax.lax.stop_gradient(moment)
        size = inner(target, target) - jnp.trace(stopped, axis1=1, axis2=2)
        pull = size[:, None] * target - 2.0 * jnp.einsum("bij,bj->bi", stopped, target)
        error = sigma**3 * slope.sum(0).reshape(n, d) + pull
        terms["order3"] = inner(error, error)
    return terms


Order = Annotated[int, Check(int, lambda v: v in (2, 3), "2 or 3")]
Method = Annotated[Callable, OneOf({"projected": projected, "exact": exact, "trace": trace})]


def high_order(
    process: Process,
    score: Score,
    key: Key,
    x0: jax.Array,
    t: jax.Array,
    cond: Cond = None,
    *,
    order: Order = 2,
    method: Method = projected,
    coefficient2: NonNegative = 1.0,
    power2: CountOrZero = 2,
    coefficient2_trace: NonNegative = 1.0,
    power2_trace: CountOrZero = 2,
    coefficient3: NonNegative = 1.0,
    power3: CountOrZero = 3,
    weighted: Flag = True,
    begin: CountOrZero = 0,
    ramp: CountOrZero = 0,
    weight: Weight = noise_weight,
    extra_terms: Penalty | None = None,
    step: jax.Array | int | None = None,
) -> LossTerms:
    """Denoising score matching of the first `order` orders, per dimension.

    order1 counts 1 / d, every other term coefficient / d^power. The defaults are those of the published image code. Its
    toy experiments use `exact` with (coefficient, power) = (0.5, 2) for order2, (0, 1) for order2_trace and (0.1, 1)
    for order3.

    Args:
      process: the forward SDE.
      score: the score function being trained; twice differentiable in x (three times, with the parameters).
      key: PRNG key of noise and probes.
      x0: data [B, ...].
      t: times [B].
      cond: what the network is told, see `types.Cond`.
      order: highest order of score matching.
      method: how the terms are computed; exact is for few dimensions, and trace has order 2 alone.
      coefficient2: coefficient of order2.
      power2: power of the dimension d by which order2 is divided.
      coefficient2_trace: coefficient of order2_trace.
      power2_trace: power of the dimension d by which order2_trace is divided.
      coefficient3: coefficient of order3.
      power3: power of the dimension d by which order3 is divided.
      weighted: whether `weight` multiplies all terms, as published where t is drawn in proportion to it; otherwise it
        multiplies order1 alone, as published where t is uniform.
      begin: number of steps before the terms above the first are switched on.
      ramp: number of steps, from `begin` on, over which the share of the terms above the first rises to 1.
      weight: weight on the squared noise error.
      extra_terms: further terms at the same noised data, see `objectives.conservative`.
      step: training step; None to count all terms in full.

    Returns:
      {"order1"[, "order2"], "order2_trace"[, "order3"]: [B]} and those of `extra_terms`, not
      divided by the density of t.
    """
    key_noise, key_probe = jax.random.split(key)
    xt, noise, sigma = process.perturb(key_noise, x0, t)
    terms = method(lambda x: score(x, t, cond), key_probe, xt, noise, sigma, third=order == 3)
    size, first = xt[0].size, weight(process, t)
    higher = combine.ramp(step, begin, ramp) * (first if weighted else jnp.ones_like(t))
    out = {"order1": first * terms.pop("order1") / size}
    scales = {
        "order2": (coefficient2, power2),
        "order2_trace": (coefficient2_trace, power2_trace),
        "order3": (coefficient3, power3),
    }
    for name, value in terms.items():
        coefficient, power = scales[name]
        out[name] = higher * coefficient / float(size) ** power * value
    if extra_terms is not None:
        out |= extra_terms(process, score, jax.random.fold_in(key, 1), xt, t, cond)
    return out
