"""Bits/dim of integer data, or nats of continuous data, with what is needed to trust the number."""

import time
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from scoreflow import divergence
from scoreflow.evaluators.context import Context, Results, table_of
from scoreflow.likelihood import LogProb, log_prob
from scoreflow.metrics import Estimate, mean_estimate
from scoreflow.runs import report
from scoreflow.types import Count, Key

_TIGHTER = 100.0  # how much smaller the tolerance of the solve that measures the solver's error is


def make_log_prob(context: Context) -> Callable[..., LogProb]:
    """solve(name, keys [N], x [N, ...], cond [N] or None, *, tighter=1) -> LogProb of host arrays.

    Each device solves its share, at the options' tolerances divided by `tighter`; `name` is that of the results kept.
    """
    model, options = context.experiment.model, context.options

    def solve(inputs, keys, x, cond):
        params, rtol, atol = inputs
        solution = log_prob(
            model.process,
            model.score(params),
            model.terminal(params),
            keys,
            x,
            cond,
            t_min=context.start,
            divergence=options.divergence,
            rtol=rtol,
            atol=atol,
            max_steps=options.max_steps,
            in_log_snr=options.clock == "log_snr",
        )
        return solution._replace(last=None)

    run = context.in_batches(solve)

    def at_tolerance(name: str, keys: Key, x: Any, cond: Any = None, *, tighter: float = 1.0) -> LogProb:
        tolerances = (jnp.float32(tolerance / tighter) for tolerance in (options.rtol, options.atol))
        return run(name, (context.params, *tolerances), keys, x, cond)

    return at_tolerance


def likelihood(context: Context, *, draws: Count = 5, check: Count = 120) -> Results | None:
    """Log-density of the test data under the probability-flow ODE.

    Args:
      context: the model and how it is evaluated.
      draws: Dequantizations (or probes, for continuous data) of each test example, averaged; with the exact divergence
        they are importance-weighted too.
      check: Test examples on which the solver's own error is measured.
    """
    if not context.options.likelihood:
        return None
    solver = make_log_prob(context)
    began, results, scores = time.monotonic(), [], []
    for draw in report.progress(range(draws), total=draws, unit="likelihood draw"):
        data = context.examples(draw)
        results.append(solver(f"likelihood-{draw}", data.keys, data.x, data.cond))
        scores.append(context.in_unit(results[-1].logp, data.log_q))
    seconds = time.monotonic() - began

    name, scale = "bits_per_dim" if context.experiment.space.bins else "nats", context.scale
    per_example = np.mean(scores, axis=0)
    ok = np.stack([r.ok for r in results]).all(0) & np.isfinite(per_example)
    metrics: dict[str, Any] = {name: mean_estimate(per_example[ok])}
    metrics["solver_error"] = _solver_error(context, solver, scores[0], check)
    metrics["prior_term"] = float(-np.mean([r.prior[ok] for r in results]) / scale)
    metrics["integral_term"] = float(-np.mean([r.integral[ok] for r in results]) / scale)
    metrics["likelihood_nfe"] = float(np.mean([r.nfe for r in results]))
    metrics["likelihood_failed"] = int(np.sum(~ok))
    metrics["likelihood_examples"], metrics["likelihood_draws"] = context.num_test, draws
    metrics["likelihood_seconds"] = seconds
    # with a random probe the mean of exp(log p + its error) would be above p
    if draws > 1 and context.options.divergence is divergence.exact:
        weighted = logsumexp(-scale * np.asarray(scores)[:, ok], axis=0) - np.log(draws)
        metrics[f"importance_weighted_{name}"] = mean_estimate(-weighted / scale)
    if context.experiment.data.log_prob is not None:
        log_density = context.experiment.data.log_prob(context.examples(0).x)
        metrics["kl_nats"] = mean_estimate((per_example + log_density)[ok])
    verdict = _verdict(metrics["solver_error"], metrics[name].stderr)
    return Results({"likelihood": metrics}, (table_of("", metrics, verdict),))


def _solver_error(context: Context, solver: Callable, scores: np.ndarray, check: int) -> Estimate:
    """The difference to a solve at a hundredth of the tolerance, with the same noise and probes."""
    data = context.examples(0, check)
    reference = solver("check", data.keys, data.x, data.cond, tighter=_TIGHTER)
    difference = scores[: len(data.x)] - context.in_unit(reference.logp, data.log_q)
    return mean_estimate(difference[np.isfinite(difference)])


def _verdict(error: Estimate, noise: float) -> str:
    """Whether the solver's error, with what is not known of it, is below a tenth of the standard error."""
    if abs(error.value) + error.stderr < noise / 10:
        return f"the solver's error is below a tenth of the standard error {noise:.2g}"
    remedy = "raise eval.check" if abs(error.value) < noise / 10 else "lower eval.rtol and eval.atol"
    return f"the solver's error is NOT shown to be below a tenth of the standard error {noise:.2g}: {remedy}"
