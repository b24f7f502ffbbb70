"""Bits/dim of integer data, or nats of continuous data, with what is needed to trust the number."""

import time
from typing import Any

import numpy as np
from scipy.special import logsumexp

from scoreflow import divergence
from scoreflow.evaluators.context import Context, Results, table_of
from scoreflow.evaluators.density import LogDensity, make_log_prob
from scoreflow.metrics import Estimate, mean_estimate
from scoreflow.runs import report
from scoreflow.types import Count

_PRECISE = "densities use the network in float32: in bfloat16 they would be off by about 0.01 bits/dim"


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
    method = make_log_prob(context)
    solver = method.solve
    began, earlier, results, scores = time.monotonic(), context.partial.seconds, [], []
    for draw in report.progress(range(draws), total=draws, unit="likelihood draw"):
        data = context.examples(draw)
        results.append(solver(f"likelihood-{draw}", data.keys, data.x, data.cond))
        scores.append(context.in_unit(results[-1].logp, data.log_q))
    seconds = time.monotonic() - began + context.partial.seconds - earlier

    name, scale = "bits_per_dim" if context.experiment.space.bins else "nats", context.scale
    per_example = np.mean(scores, axis=0)
    ok = np.stack([r.ok for r in results]).all(0) & np.isfinite(per_example)
    metrics: dict[str, Any] = {name: mean_estimate(per_example[ok])}
    metrics["solver_error"] = _solver_error(context, solver, scores[0], check)
    for term in ("prior", "integral") if ok.any() else ():
        metrics[f"{term}_term"] = float(-np.mean([getattr(r, term)[ok] for r in results]) / scale)
    if context.experiment.space.latent is not None:  # the part of the bound that the score model has
        metrics["cross_entropy"] = mean_estimate(-np.mean([r.logp[ok] for r in results], axis=0) / scale)
    if method.pilot:
        metrics["pilot_nfe"] = method.pilot / (context.num_test * draws)
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
    adaptive = context.options.solver == "adaptive"
    remedy = "lower eval.rtol and eval.atol" if adaptive else "lower eval.error, or set eval.solver = adaptive"
    verdict = _verdict(metrics["solver_error"], metrics[name].stderr, remedy)
    if failed := metrics["likelihood_failed"]:
        remedy = "raise eval.max_steps, or eval.rtol and eval.atol" if adaptive else "set eval.solver = adaptive"
        given_up = f"{failed} of {context.num_test} solves gave up: {remedy}"
        report.warn(given_up)
        verdict = given_up if failed == context.num_test else verdict
    notes = (verdict,) if context.model is context.experiment.model else (verdict, _PRECISE)
    examples = {name: np.where(ok, per_example, np.nan)}
    return Results({"likelihood": metrics}, (table_of("", metrics, *notes),), examples)


def _solver_error(context: Context, solver: LogDensity, scores: np.ndarray, check: int) -> Estimate:
    """The difference to a finer solve, with the same noise and probes."""
    data = context.examples(0, check)
    with report.waiting(f"measuring the solver's own error on {len(data.x)} examples"):
        reference = solver("check", data.keys, data.x, data.cond, finer=True)
    difference = scores[: len(data.x)] - context.in_unit(reference.logp, data.log_q)
    return mean_estimate(difference[np.isfinite(difference)])


def _verdict(error: Estimate, noise: float, lower: str) -> str:
    """Whether the solver's error, with what is not known of it, is below a tenth of the standard error."""
    if abs(error.value) + error.stderr < noise / 10:
        return f"the solver's error is below a tenth of the standard error {noise:.2g}"
    remedy = "raise eval.check" if abs(error.value) < noise / 10 else lower
    return f"the solver's error is NOT shown to be below a tenth of the standard error {noise:.2g}: {remedy}"
