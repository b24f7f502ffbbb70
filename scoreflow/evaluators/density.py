"""What is asked of a model's density: likelihood, bound, the parts of its divergence, and a classical baseline."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from scoreflow import dequantise, divergence
from scoreflow.data import Split
from scoreflow.evaluators.settings import EvalPlan
from scoreflow.experiment import EVALUATE, Experiment
from scoreflow.likelihood import bound, log_prob
from scoreflow.likelihood.diagnostics import kl_terms
from scoreflow.metrics import Estimate, baseline, mean_estimate
from scoreflow.objectives.dsm import dsm
from scoreflow.runs import parallel, report
from scoreflow.theory.exact import score_of

_TIGHTER = 100.0  # how much smaller the tolerance of the solve that measures the solver's error is


def error_by_level(experiment: Experiment, params, *, num: int = 256, levels: int = 25) -> tuple[np.ndarray, dict]:
    """Noise-prediction error per dimension at evenly spaced log-SNR, on training and on test data.

    Returns:
      log_snr [levels] and {"train": [levels], "test": [levels]}.
    """
    process = experiment.process
    ends = process.log_snr(jnp.asarray([experiment.t_min, process.horizon]))
    log_snr = jnp.linspace(ends[0], ends[1], levels)

    @parallel.jit
    def curve(params, key, data, label):
        key_x, key_noise = jax.random.split(key)
        x0 = experiment.encode(params, key_x, data)
        cond = label if experiment.conditional else None

        def at(t):
            score = experiment.score(params)
            return dsm(process, score, key_noise, x0, jnp.full(x0.shape[0], t), cond)["order1"].mean()

        return jax.lax.map(at, process.inverse_log_snr(log_snr).clip(experiment.t_min, process.horizon))

    curves = {}
    for name, split in (("train", experiment.data.train), ("test", experiment.data.test)):
        part = Split(split.x[:num], None if split.label is None else split.label[:num])
        curves[name] = np.asarray(curve(params, experiment.key(EVALUATE), np.asarray(part.x), part.label))
    return np.asarray(log_snr), curves


def make_log_prob(experiment: Experiment, plan: EvalPlan, params) -> Callable:
    """solve(name, keys [N], x [N, ...], cond [N] or None, *, tighter=1) -> LogProb of host arrays.

    Each device solves its share, at the plan's tolerances divided by `tighter`; `name` is that of the pieces kept.
    """

    def solve(inputs, keys, x, cond):
        params, rtol, atol = inputs
        found = log_prob(
            experiment.process,
            experiment.score(params),
            experiment.terminal(params),
            keys,
            x,
            cond,
            t_min=plan.start,
            divergence=plan.divergence,
            rtol=rtol,
            atol=atol,
            max_steps=plan.max_steps,
            in_log_snr=plan.in_log_snr,
        )
        return found._replace(last=None)

    run = in_batches(solve, plan)

    def at_tolerance(name, keys, x, cond=None, *, tighter=1.0):
        tolerances = (jnp.float32(tolerance / tighter) for tolerance in (plan.rtol, plan.atol))
        return run(name, (params, *tolerances), keys, x, cond)

    return at_tolerance


def in_batches(solve: Callable, plan: EvalPlan) -> Callable:
    """run(name, params, keys [N], x [N, ...], cond [N] or None) -> what solve(params, ...) gives, as host arrays.

    In batches of the plan's size over all devices; those that are among the plan's pieces of this name are not solved
    again.
    """
    size = plan.batch_size
    mapped = parallel.map_devices(solve, broadcast=(0,))

    def run(name, params, keys, x, cond=None):
        def batch(i):
            inputs = jax.tree.map(lambda leaf: leaf[i : i + size], (keys, x, cond))
            count = len(inputs[1])
            padded = jax.tree.map(lambda leaf: leaf[np.arange(size) % count], inputs)

            def make():
                result = parallel.gather(mapped(params, *parallel.shard(padded)))
                return jax.tree.map(lambda leaf: leaf[:count], result)

            return plan.pieces.get(f"{name}-{i}", lambda: jax.eval_shape(solve, params, *padded), make)

        parts = [batch(i) for i in range(0, len(x), size)]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    return run


class Examples(NamedTuple):
    """Examples as a density sees them: a key for each, continuous `x`, `log_q` of the dequantization noise, labels."""

    keys: jax.Array
    x: np.ndarray
    log_q: np.ndarray
    cond: np.ndarray | None

    def first(self, count: int) -> "Examples":
        """The first `count` of them."""
        return Examples(*(None if leaf is None else leaf[:count] for leaf in self))


def dequantised(experiment: Experiment, plan: EvalPlan, params, draw: int) -> Examples:
    """The test examples to be scored, in the given draw of noise."""
    test, count = experiment.data.test, plan.num_test or len(experiment.data.test.x)
    key_noise, key_probe = jax.random.split(jax.random.fold_in(experiment.key(EVALUATE), draw))
    keys, x = jax.random.split(key_probe, count), np.asarray(test.x[:count])
    cond = test.label[:count] if plan.conditional else None
    if plan.dequantise is None:
        return Examples(keys, x, np.zeros(count), cond)
    found = plan.dequantise(params, key_noise, x)
    return Examples(keys, np.asarray(found.x), np.asarray(found.log_q), cond)


def units(experiment: Experiment, logp: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """Bits/dim of integer data, nats of continuous and of binary data, [N] float64."""
    logp, size = np.asarray(logp, np.float64), int(np.prod(experiment.data.shape))
    return dequantise.bits_per_dim(logp, log_q, size, experiment.bins) if experiment.bins else log_q - logp


def scale_of(experiment: Experiment) -> float:
    """Nats in one unit of `units`."""
    return float(np.prod(experiment.data.shape) * np.log(2.0)) if experiment.bins else 1.0


def likelihood_metrics(experiment: Experiment, plan: EvalPlan, params) -> dict[str, Estimate | float | int]:
    """Bits/dim of integer data, or nats of continuous data, with what is needed to trust the number."""
    parallel.check_divides(plan.batch_size, "eval.batch_size")
    solver = make_log_prob(experiment, plan, params)
    began, results, scores = time.monotonic(), [], []
    for draw in report.progress(range(plan.draws), total=plan.draws, unit="likelihood draw"):
        data = dequantised(experiment, plan, params, draw)
        results.append(solver(f"likelihood-{draw}", data.keys, data.x, data.cond))
        scores.append(units(experiment, results[-1].logp, data.log_q))
    seconds = time.monotonic() - began

    name, scale = "bits_per_dim" if experiment.bins else "nats", scale_of(experiment)
    per_example = np.mean(scores, axis=0)
    ok = np.stack([r.ok for r in results]).all(0) & np.isfinite(per_example)
    metrics = {name: mean_estimate(per_example[ok])}
    data = dequantised(experiment, plan, params, 0)
    part = data.first(plan.check)
    reference = solver("check", part.keys, part.x, part.cond, tighter=_TIGHTER)
    difference = scores[0][: len(part.x)] - units(experiment, reference.logp, part.log_q)
    metrics["solver_error"] = mean_estimate(difference[np.isfinite(difference)])
    metrics["prior_term"] = float(-np.mean([r.prior[ok] for r in results]) / scale)
    metrics["integral_term"] = float(-np.mean([r.integral[ok] for r in results]) / scale)
    metrics["likelihood_nfe"] = float(np.mean([r.nfe for r in results]))
    metrics["likelihood_failed"] = int(np.sum(~ok))
    metrics["likelihood_examples"], metrics["likelihood_draws"] = len(data.x), plan.draws
    metrics["likelihood_seconds"] = seconds
    if plan.weigh_draws:  # log-mean-exp over the draws of one example
        weighted = logsumexp(-scale * np.asarray(scores)[:, ok], axis=0) - np.log(plan.draws)
        metrics[f"importance_weighted_{name}"] = mean_estimate(-weighted / scale)
    if plan.bound_times:
        metrics |= _bound_metrics(experiment, plan, params, data)
    if experiment.data.log_prob is not None:
        metrics["kl_nats"] = mean_estimate((per_example + experiment.data.log_prob(data.x))[ok])
    return metrics


def _bound_metrics(experiment: Experiment, plan: EvalPlan, params, data: Examples) -> dict[str, Estimate | float]:
    """The SDE model's bound in bits/dim or nats, and its terms before the change of units."""

    def estimate(params, keys, x, cond):
        process, law = experiment.process, experiment.terminal(params)
        options = {"t_min": experiment.t_min, "num_times": plan.bound_times}
        return bound(process, experiment.score(params), law, keys, x, cond, **options)

    found = in_batches(estimate, plan)("bound", params, data.keys, data.x, data.cond)
    names, scale = ("prior", "diffusion", "offset"), scale_of(experiment)
    terms = {f"bound_{name}": float(np.mean(getattr(found, name)) / scale) for name in names}
    return {"bound": mean_estimate(units(experiment, -found.total, data.log_q)), **terms}


def diagnostic_metrics(experiment: Experiment, plan: EvalPlan, params) -> dict[str, Estimate]:
    """The parts of the ODE's divergence (`diagnostics`), in bits/dim of integer data or nats.

    `j_gap` always. Where the law of the data under noise is known, `j_sm`, `j_diff`, their sum `j_ode`, `j_f`, the
    divergence at T (`kl_end`) and with it that at t_min (`kl_from_parts`), which is of noised data.
    """
    process, known = experiment.process, experiment.log_density
    data = dequantised(experiment, plan, params, 0).first(plan.diagnose)
    true_score = None if known is None else score_of(process, known)
    options = {"t_min": experiment.t_min, "true_score": true_score, "exact": plan.divergence is divergence.exact}

    def solve(params, keys, x, cond):
        key_parts, key_end = jax.random.split(keys[0])
        score, law = experiment.score(params), experiment.terminal(params)
        tolerance = {"rtol": plan.rtol, "atol": plan.atol, "max_steps": plan.max_steps}
        found = kl_terms(process, score, law, key_parts, x, cond, **options, **tolerance)
        if known is None:
            return found, None
        horizon = jnp.full(len(x), process.horizon, x.dtype)
        end = process.perturb(key_end, x, horizon).xt
        log_q = jax.vmap(known)(end, process.alpha(horizon), process.sigma(horizon))
        return found, log_q - law.log_prob(end)

    found, end = in_batches(solve, plan)("divergence", params, data.keys, data.x, data.cond)
    values = {name: value for name, value in found._asdict().items() if value is not None}
    if end is not None:
        j_ode = values["j_sm"] + values["j_diff"]
        values |= {"j_ode": j_ode, "kl_end": end, "kl_from_parts": end + j_ode}
    return {name: mean_estimate(value[np.isfinite(value)] / scale_of(experiment)) for name, value in values.items()}


def baseline_metrics(experiment: Experiment, plan: EvalPlan) -> dict[str, float | int]:
    """The same number for a uniform density and for a Gaussian mixture, where such a fit is cheap."""
    source, bins = experiment.data, experiment.bins
    size = int(np.prod(source.shape))
    if source.levels and bins is None:
        return {"uniform_nats": size * float(np.log(2.0))}
    metrics = {"uniform_bits_per_dim": float(np.log2(bins.levels))} if bins else {}
    if not plan.baseline or size > baseline.MAX_DIMENSIONS or (bins and bins.levels != source.levels):
        return metrics
    rows = []
    for i, split in enumerate((source.train, source.test)):
        x = np.asarray(split.x[:20_000])
        if source.levels:
            x = np.asarray(dequantise.uniform(jax.random.fold_in(experiment.key(EVALUATE), 1000 + i), x, bins).x)
        rows.append(np.asarray(x, np.float64).reshape(len(x), -1))
    fitted = baseline.gaussian_mixture(*rows)
    if source.levels:
        value = float(dequantise.bits_per_dim(fitted.log_prob, 0.0, size, bins))
        return {**metrics, "mixture_bits_per_dim": value, "mixture_components": fitted.components}
    return {"mixture_nats": -fitted.log_prob, "mixture_components": fitted.components}
