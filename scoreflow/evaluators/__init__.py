"""Evaluation: likelihood and sample metrics of a checkpoint, each with its standard error and cost."""

from pathlib import Path

import numpy as np

from scoreflow import sample
from scoreflow.evaluators.density import baseline_metrics, diagnostic_metrics, likelihood_metrics
from scoreflow.evaluators.field import rotation_maps, score_error_metrics, symmetry_metrics, tolerance_metrics
from scoreflow.evaluators.horizons import best, horizon_metrics
from scoreflow.evaluators.latent import latent_metrics
from scoreflow.evaluators.samples import sample_metrics, statistics
from scoreflow.evaluators.settings import EvalPlan
from scoreflow.experiment import Experiment
from scoreflow.metrics import Estimate
from scoreflow.runs import report, workdir
from scoreflow.runs.partial import PartialResults


def evaluate(experiment: Experiment, plan: EvalPlan, folder: Path) -> dict:
    """`--mode=eval`: scores the newest checkpoint, prints a table and writes `eval/<step>/metrics.json`.

    Finished batches lie in `eval/<step>/pieces` until it ends: the same command goes on after a kill.
    """
    step = workdir.newest(folder, plan.best)
    params = sample.load_ema(experiment, folder, step, plan.best)
    out = folder / "eval" / (f"{step}-{plan.best}" if plan.best else str(step))
    pieces = PartialResults(out / "pieces" / workdir.fingerprint(folder, step, experiment.config, plan.best))
    plan = plan._replace(pieces=pieces)
    results = {"step": step}
    if plan.batch_size:
        results["likelihood"] = likelihood_metrics(experiment, plan, params) | baseline_metrics(experiment, plan)
    if plan.batch_size and experiment.latent is not None:
        results["latent"] = latent_metrics(experiment, plan, params, out)
    if plan.batch_size and plan.diagnose:
        results["divergence"] = diagnostic_metrics(experiment, plan, params)
    if plan.batch_size and plan.symmetry:
        results["symmetry"], curves = symmetry_metrics(experiment, plan, params)
        panels = {name: {"": curves.values[name]} for name in ("weighted", "nasym")}
        report.plot_times(out / "symmetry.png", curves.t, panels)
        results["symmetry_over_time"] = {name: [float(v) for v in values] for name, values in curves.values.items()}
        if experiment.data.shape == (2,):
            report.plot_signed(out / "rotation.png", *rotation_maps(experiment, params))
    if plan.batch_size and plan.score_error:
        results["score_error"] = score_error_metrics(experiment, plan, params)
    if plan.batch_size and plan.horizons:
        results["horizons"] = horizon_metrics(experiment, plan, params)
        _draw_horizons(out / "horizons.png", experiment, results["horizons"])
    if plan.tolerances:
        results["tolerances"] = tolerance_metrics(experiment, plan, params)
    if plan.num_samples:
        results["samples"] = sample_metrics(experiment, plan, params, out)
    report.write_json(out / "metrics.json", _plain(results))
    pieces.forget()
    report.say(_table(experiment, results))
    report.say(f"wrote {out / 'metrics.json'}")
    return results


def prepare(experiment: Experiment, plan: EvalPlan) -> None:
    """`--mode=stats`: takes the training data's features, which every evaluation on this data set then finds."""
    extractor, x = plan.extractor(), experiment.data.train.x
    statistics(extractor, x, plan.cache_dir)
    report.say(f"{extractor.name}: features of {len(x)} training examples are in {plan.cache_dir / 'statistics'}")


def _plain(value):
    if isinstance(value, Estimate):
        return value._asdict()
    if isinstance(value, list):
        return [_plain(v) for v in value]
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


_LAWS = {"prior": "the process's Gaussian", "fitted": "the fitted law"}


def _horizons(experiment: Experiment, rows: list[dict]) -> list[str]:
    """The table over horizons, and which is best under each law."""
    unit = "bits/dim" if experiment.bins else "nats"
    names = list(max(rows, key=len))
    table = [tuple(name.replace("_", " ") for name in names)]
    table += [tuple(_words(row[name]) if name in row else "" for name in names) for row in rows]
    lines = [f"bound over horizons T, {unit}", report.table(table)]
    return lines + [f"T* = {t:g} with {words}" for name, words in _LAWS.items() if (t := best(rows, name)) is not None]


def _draw_horizons(path: Path, experiment: Experiment, rows: list[dict]) -> None:
    curves = {}
    for name, words in _LAWS.items():
        if points := [(row["T"], row[name].value, row[name].stderr) for row in rows if name in row]:
            curves[words] = np.array(points).T
    report.plot_errors(path, curves, "T", "bound, bits/dim" if experiment.bins else "bound, nats")


def _table(experiment: Experiment, results: dict) -> str:
    lines = [f"{experiment.name}, step {results['step']} (mean +- standard error)"]
    if "likelihood" in results:
        lines += ["", report.table([(k.replace("_", " "), _words(v)) for k, v in results["likelihood"].items()])]
        name = "bits_per_dim" if experiment.bins else "nats"
        lines.append(_verdict(results["likelihood"]["solver_error"], results["likelihood"][name].stderr))
    if "latent" in results:
        rows = [("terms of the bound, nats", "")]
        rows += [(k.replace("_", " "), _words(v)) for k, v in results["latent"].items()]
        lines += ["", report.table(rows)]
    if "divergence" in results:
        unit = "bits/dim" if experiment.bins else "nats"
        rows = [(f"parts of the ODE's divergence, {unit}", "")]
        rows += [(k.replace("_", " "), _words(v)) for k, v in results["divergence"].items()]
        lines += ["", report.table(rows)]
    if "symmetry" in results:
        rows = [("asymmetry of the score's Jacobian", "")]
        rows += [(k, _words(v)) for k, v in results["symmetry"].items()]
        lines += ["", report.table(rows)]
    if "score_error" in results:
        rows = [("half the squared error of the score, over ten times", "")]
        rows += [(k, _words(v)) for k, v in results["score_error"].items()]
        lines += ["", report.table(rows)]
    if "horizons" in results:
        lines += ["", *_horizons(experiment, results["horizons"])]
    if "tolerances" in results:
        found = results["tolerances"]
        rows = [tuple(found[0]), *(tuple(_words(v) for v in row.values()) for row in found)]
        lines += ["", "evaluations of the score by the adaptive sampler", report.table(rows)]
    if "samples" in results:
        model, real = results["samples"]["model"], results["samples"]["test_data"]
        rows = [(f"features: {results['samples']['features']}", "model", "test data")]
        rows += [(k.replace("_", " "), _words(v), _words(real[k]) if k in real else "") for k, v in model.items()]
        lines += ["", report.table(rows), "distances are to the training data; test data show what is attainable"]
    return "\n".join(lines)
