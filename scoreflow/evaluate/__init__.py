"""Evaluation: likelihood and sample metrics of a checkpoint, each with its standard error and cost."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from scoreflow import dequantise, parallel, report, sample, workdir
from scoreflow.data import Split
from scoreflow.experiment import EVALUATE, Experiment
from scoreflow.likelihood import Bound, bound, log_prob
from scoreflow.losses.dsm import dsm
from scoreflow.metrics import Estimate, Extractor, baseline, frechet, jackknife, mean_estimate
from scoreflow.metrics.kernel import MIN_SAMPLES, kernel_distance
from scoreflow.metrics.neighbours import covered
from scoreflow.metrics.transport import wasserstein2

_GROUPS = 10  # of samples, each left out once for the standard error of the Frechet distance
_KEPT = 10_000  # features kept for the metrics that compare pairs
_ASSIGNED = 2000  # points matched for the exact Wasserstein distance, whose time grows as the cube
_TIGHTER = 100.0  # how much smaller the tolerance of the solve that measures the solver's error is


class EvalPlan(NamedTuple):
    """How to evaluate.

    Attributes:
      num_test: test examples scored; 0 for all.
      draws: dequantisations (or probes, for continuous data) of each, averaged.
      batch_size: examples per likelihood call, over all devices; 0 skips the likelihood.
      dequantise: (key, levels array) -> Dequantised; None where the data are continuous.
      divergence: `divergence.hutchinson` or `divergence.exact`.
      rtol, atol, max_steps: of the solver.
      in_log_snr: whether the solver's clock is log-SNR.
      weigh_draws: whether to give the importance-weighted estimate over the draws too. Needs the exact divergence:
        with a probe the mean of exp(log p + its error) is above p.
      bound_times: times for each example behind the SDE model's bound; 0 skips it.
      conditional: whether the network is given the label.
      check: examples on which the solver's error is measured.
      baseline: whether to fit a Gaussian mixture to compare with.
      num_samples: samples behind the sample metrics; 0 skips them.
      sample_batch: samples per call, over all devices.
      extractor: () -> the feature function, loaded or fitted on first use.
      neighbours: k of precision and recall.
    """

    num_test: int
    draws: int
    batch_size: int
    dequantise: Callable | None
    divergence: Callable
    rtol: float
    atol: float
    max_steps: int
    in_log_snr: bool
    weigh_draws: bool
    bound_times: int
    conditional: bool
    check: int
    baseline: bool
    num_samples: int
    sample_batch: int
    extractor: Callable[[], Extractor]
    neighbours: int


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
        x0 = experiment.encode(key_x, data)
        cond = label if experiment.conditional else None

        def at(t):
            score = experiment.score(params)
            return dsm(process, score, key_noise, x0, jnp.full(x0.shape[0], t), cond)["order1"].mean()

        return jax.lax.map(at, process.inverse_log_snr(log_snr).clip(experiment.t_min, process.horizon))

    curves = {}
    for name, split in (("train", experiment.source.train), ("test", experiment.source.test)):
        part = Split(split.x[:num], None if split.label is None else split.label[:num])
        curves[name] = np.asarray(curve(params, experiment.key(EVALUATE), np.asarray(part.x), part.label))
    return np.asarray(log_snr), curves


# ----------------------------------------------------------------------------------------------------------------------
# Likelihood.


def make_log_prob(experiment: Experiment, plan: EvalPlan, params, *, rtol: float, atol: float) -> Callable:
    """(keys [N], x [N, ...], cond [N] or None) -> LogProb of host arrays, each device solving its share."""

    def solve(params, keys, x, cond):
        return log_prob(
            experiment.process,
            experiment.score(params),
            experiment.terminal,
            keys,
            x,
            cond,
            t_min=experiment.t_min,
            divergence=plan.divergence,
            rtol=rtol,
            atol=atol,
            max_steps=plan.max_steps,
            in_log_snr=plan.in_log_snr,
        )

    return _in_batches(solve, params, plan.batch_size)


def make_bound(experiment: Experiment, plan: EvalPlan, params) -> Callable:
    """(keys [N], x [N, ...], cond [N] or None) -> Bound of host arrays."""

    def estimate(params, keys, x, cond):
        process, law = experiment.process, experiment.terminal
        options = {"t_min": experiment.t_min, "num_times": plan.bound_times}
        return bound(process, experiment.score(params), law, keys, x, cond, **options)

    return _in_batches(estimate, params, plan.batch_size)


def _in_batches(solve: Callable, params, size: int) -> Callable:
    """(keys [N], x [N, ...], cond [N] or None) -> what solve(params, ...) gives, in batches over all devices."""
    mapped = parallel.map_devices(solve, broadcast=(0,))

    def run(keys, x, cond=None):
        parts = []
        for i in range(0, len(x), size):
            inputs = jax.tree.map(lambda leaf, i=i: leaf[i : i + size], (keys, x, cond))
            count = len(inputs[1])
            padded = jax.tree.map(lambda leaf, n=count: leaf[np.arange(size) % n], inputs)
            result = parallel.gather(mapped(params, *parallel.shard(padded)))
            parts.append(jax.tree.map(lambda leaf, n=count: leaf[:n], result))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    return run


def likelihood_metrics(experiment: Experiment, plan: EvalPlan, params) -> dict[str, Estimate | float | int]:
    """Bits/dim of integer data, or nats of continuous data, with what is needed to trust the number."""
    parallel.check_divides(plan.batch_size, "eval.batch_size")
    source = experiment.source
    count = plan.num_test or len(source.test.x)
    x, label = source.test.x[:count], source.test.label
    cond = label[:count] if plan.conditional else None
    size = int(np.prod(source.shape))
    solver = make_log_prob(experiment, plan, params, rtol=plan.rtol, atol=plan.atol)

    def prepare(draw):
        key_noise, key_probe = jax.random.split(jax.random.fold_in(experiment.key(EVALUATE), draw))
        keys = jax.random.split(key_probe, len(x))
        if plan.dequantise is None:
            return keys, np.asarray(x), np.zeros(len(x))
        dequantised = plan.dequantise(key_noise, np.asarray(x))
        return keys, np.asarray(dequantised.x), np.asarray(dequantised.log_q)

    def units(logp, log_q):
        logp = np.asarray(logp, np.float64)
        return dequantise.bits_per_dim(logp, log_q, size, source.levels) if source.levels else -logp

    began, results, scores = time.monotonic(), [], []
    for draw in report.progress(range(plan.draws), total=plan.draws, unit="likelihood draw"):
        keys, points, log_q = prepare(draw)
        results.append(solver(keys, points, cond))
        scores.append(units(results[-1].logp, log_q))
    seconds = time.monotonic() - began

    name = "bits_per_dim" if source.levels else "nats"
    per_example = np.mean(scores, axis=0)
    ok = np.stack([r.ok for r in results]).all(0) & np.isfinite(per_example)
    metrics = {name: mean_estimate(per_example[ok])}
    keys, points, log_q = prepare(0)
    part = slice(0, min(plan.check, count))
    tight = make_log_prob(experiment, plan, params, rtol=plan.rtol / _TIGHTER, atol=plan.atol / _TIGHTER)
    reference = tight(keys[part], points[part], None if cond is None else cond[part])
    difference = scores[0][part] - units(reference.logp, log_q[part])
    metrics["solver_error"] = mean_estimate(difference[np.isfinite(difference)])
    scale = size * np.log(2.0) if source.levels else 1.0
    metrics["prior_term"] = float(-np.mean([r.prior[ok] for r in results]) / scale)
    metrics["integral_term"] = float(-np.mean([r.integral[ok] for r in results]) / scale)
    metrics["likelihood_nfe"] = float(np.mean([r.nfe for r in results]))
    metrics["likelihood_failed"] = int(np.sum(~ok))
    metrics["likelihood_examples"], metrics["likelihood_draws"] = count, plan.draws
    metrics["likelihood_seconds"] = seconds
    if plan.weigh_draws:  # log-mean-exp over the draws of one example
        scale_of = -size * np.log(2.0) if source.levels else -1.0
        weighted = logsumexp(scale_of * np.asarray(scores)[:, ok], axis=0) - np.log(plan.draws)
        metrics[f"importance_weighted_{name}"] = mean_estimate(weighted / scale_of)
    if plan.bound_times:
        metrics |= _bound_metrics(make_bound(experiment, plan, params)(keys, points, cond), units, log_q, scale)
    if source.log_prob is not None:
        metrics["kl_nats"] = mean_estimate((per_example + source.log_prob(x))[ok])
    return metrics


def _bound_metrics(found: Bound, units: Callable, log_q: np.ndarray, scale: float) -> dict[str, Estimate | float]:
    """The SDE model's bound in bits/dim or nats, and its terms before the change of units."""
    terms = {f"bound_{name}": float(np.mean(getattr(found, name)) / scale) for name in ("prior", "diffusion", "offset")}
    return {"bound": mean_estimate(units(-found.total, log_q)), **terms}


def baseline_metrics(experiment: Experiment, plan: EvalPlan) -> dict[str, float | int]:
    """The same number for a uniform density and for a Gaussian mixture, where such a fit is cheap."""
    source = experiment.source
    size = int(np.prod(source.shape))
    metrics = {"uniform_bits_per_dim": float(np.log2(source.levels))} if source.levels else {}
    if not plan.baseline or size > baseline.MAX_DIMENSIONS:
        return metrics
    rows = []
    for i, split in enumerate((source.train, source.test)):
        x = np.asarray(split.x[:20_000])
        if source.levels:
            x = np.asarray(
                dequantise.uniform(jax.random.fold_in(experiment.key(EVALUATE), 1000 + i), x, source.levels).x
            )
        rows.append(np.asarray(x, np.float64).reshape(len(x), -1))
    fitted = baseline.gaussian_mixture(*rows)
    if source.levels:
        value = float(dequantise.bits_per_dim(fitted.log_prob, 0.0, size, source.levels))
        return {**metrics, "mixture_bits_per_dim": value, "mixture_components": fitted.components}
    return {"mixture_nats": -fitted.log_prob, "mixture_components": fitted.components}


# ----------------------------------------------------------------------------------------------------------------------
# Samples.


class Sampled(NamedTuple):
    """Features of a sample: the first `pool` and `probs` for pairwise metrics, `moments` of all in groups."""

    pool: np.ndarray
    probs: np.ndarray | None
    moments: list[frechet.Moments]


def collect(extractor: Extractor, x: np.ndarray, origin: np.ndarray | None = None, batch: int = 500) -> Sampled:
    """Runs the feature function over a sample in batches, keeping what the metrics need."""
    moments, kept = None, []
    for i in range(0, len(x), batch):
        features = extractor.extract(x[i : i + batch])
        if moments is None:
            moments = [frechet.init(features.pool[0] if origin is None else origin)] * _GROUPS
        rows = np.arange(i, i + len(features.pool)) % _GROUPS
        moments = [frechet.update(stats, features.pool[rows == g]) for g, stats in enumerate(moments)]
        if i < _KEPT:
            kept.append(features)
    probs = None if kept[0].probs is None else np.concatenate([f.probs for f in kept])[:_KEPT]
    return Sampled(np.concatenate([f.pool for f in kept])[:_KEPT], probs, moments)


def _merge(moments: list[frechet.Moments]) -> frechet.Moments:
    total = moments[0]
    for part in moments[1:]:
        total = frechet.merge(total, part)
    return total


def quality(found: Sampled, reference: Sampled, target: frechet.Reference, k: int) -> dict[str, Estimate | float | int]:
    """Distances between a sample's features and a reference's, and what the classifier says of the sample."""
    others = [_merge(found.moments[:g] + found.moments[g + 1 :]) for g in range(_GROUPS)]
    metrics = {
        "frechet": jackknife(
            frechet.frechet_distance(_merge(found.moments), target),
            np.array([frechet.frechet_distance(other, target) for other in others]),
        ),
        "kernel": kernel_distance(found.pool, reference.pool) if len(found.pool) >= MIN_SAMPLES else None,
        "precision": mean_estimate(covered(found.pool, reference.pool, k)),
        "recall": mean_estimate(covered(reference.pool, found.pool, k)),
    }
    if found.probs is not None:
        share = np.bincount(found.probs.argmax(1), minlength=found.probs.shape[1]) / len(found.probs)
        metrics["confidence"] = mean_estimate(found.probs.max(1))
        metrics["classes_found"] = int((share > 0).sum())
        metrics["smallest_class_share"] = float(share.min())
    return metrics


def sample_metrics(experiment: Experiment, plan: EvalPlan, params, folder: Path) -> dict[str, dict]:
    """Metrics of the model's samples and, for scale, of the test data, both against the training data."""
    draw = sample.make_draw(experiment, plan.sample_batch)
    began = time.monotonic()
    drawn = draw(params, experiment.key(EVALUATE), plan.num_samples)
    seconds = time.monotonic() - began
    sample.write_picture(experiment, drawn.x[:400], folder / "samples.png")
    source = experiment.source
    finite = np.isfinite(drawn.x.astype(np.float64)).reshape(len(drawn.x), -1).all(1)
    x = drawn.x[finite]

    extractor = plan.extractor()
    reference = collect(extractor, source.train.x)
    origin = reference.moments[0].origin
    test = collect(extractor, source.test.x, origin)
    target = frechet.reference(*frechet.mean_and_covariance(_merge(reference.moments)))
    model, real = (quality(s, reference, target, plan.neighbours) for s in (collect(extractor, x, origin), test))
    if x.ndim == 2:
        n = min(_ASSIGNED, len(x), len(source.test.x) // 2)
        model["wasserstein2"] = wasserstein2(x[:n], source.test.x[:n])
        real["wasserstein2"] = wasserstein2(source.test.x[n : 2 * n], source.test.x[:n])
    model |= {"samples": len(x), "sample_nfe": drawn.nfe, "sample_seconds": seconds}
    real |= {"samples": len(source.test.x)}
    return {"features": extractor.name, "model": model, "test_data": real}


# ----------------------------------------------------------------------------------------------------------------------


def evaluate(experiment: Experiment, plan: EvalPlan, folder: Path) -> dict:
    """`--mode=eval`: scores the newest checkpoint, prints a table and writes `eval/<step>/metrics.json`."""
    step = workdir.newest(folder)
    params = sample.load_ema(experiment, folder, step)
    out = folder / "eval" / str(step)
    results = {"step": step}
    if plan.batch_size:
        results["likelihood"] = likelihood_metrics(experiment, plan, params) | baseline_metrics(experiment, plan)
    if plan.num_samples:
        results["samples"] = sample_metrics(experiment, plan, params, out)
    report.write_json(out / "metrics.json", _plain(results))
    report.say(_table(experiment, results))
    report.say(f"wrote {out / 'metrics.json'}")
    return results


def _plain(value):
    if isinstance(value, Estimate):
        return value._asdict()
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def _words(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, Estimate):
        return f"{value.value:.4g} +- {value.stderr:.2g}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _verdict(error: Estimate, noise: float) -> str:
    """Whether the solver's error, with what is not known of it, is below a tenth of the standard error."""
    if abs(error.value) + error.stderr < noise / 10:
        return f"the solver's error is below a tenth of the standard error {noise:.2g}"
    remedy = "raise eval.check" if abs(error.value) < noise / 10 else "lower eval.rtol and eval.atol"
    return f"the solver's error is NOT shown to be below a tenth of the standard error {noise:.2g}: {remedy}"


def _table(experiment: Experiment, results: dict) -> str:
    lines = [f"{experiment.name}, step {results['step']} (mean +- standard error)"]
    if "likelihood" in results:
        lines += ["", report.table([(k.replace("_", " "), _words(v)) for k, v in results["likelihood"].items()])]
        name = "bits_per_dim" if experiment.source.levels else "nats"
        lines.append(_verdict(results["likelihood"]["solver_error"], results["likelihood"][name].stderr))
    if "samples" in results:
        model, real = results["samples"]["model"], results["samples"]["test_data"]
        rows = [(f"features: {results['samples']['features']}", "model", "test data")]
        rows += [(k.replace("_", " "), _words(v), _words(real[k]) if k in real else "") for k, v in model.items()]
        lines += ["", report.table(rows), "distances are to the training data; test data show what is attainable"]
    return "\n".join(lines)
