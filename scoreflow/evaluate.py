"""Evaluation: a loop over evaluators, each with its standard errors and its cost."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from scoreflow.data.fetch import default_dir
from scoreflow.evaluators.context import Context, EvalOptions, Evaluators, Results, Table, context
from scoreflow.evaluators.features import FeatureName, extractor, statistics
from scoreflow.experiment import Experiment, load_params
from scoreflow.metrics import Estimate
from scoreflow.runs import caches, report, workdir
from scoreflow.runs.partial import NONE, PartialResults
from scoreflow.types import Params


class Evaluation(NamedTuple):
    """What `--mode=eval` measures.

    Attributes:
      options: what evaluators share.
      evaluators: by name, in the order in which they run; their own options are bound.
      best: the measure whose best checkpoint is evaluated; "" for the newest.
      cache_dir: where statistics of the training data's features are kept; None for the user's cache folder.
      data_dir: where the weights of published feature networks are looked for; None for the default data folder.
    """

    options: EvalOptions
    evaluators: Evaluators
    best: str = ""
    cache_dir: Path | None = None
    data_dir: Path | None = None

    def context(
        self,
        experiment: Experiment,
        params: Params,
        folder: Path | None = None,
        partial: PartialResults = NONE,
    ) -> Context:
        """What evaluators are given for a model with these parameters; pictures go to `folder`, if there is one."""
        cache_dir = self.cache_dir or caches.folder()
        return context(
            experiment, params, self.options, cache_dir, folder=folder, data_dir=self.data_dir, partial=partial
        )


def measure(context: Context, evaluators: Evaluators, only: Collection[str] = ()) -> Results:
    """Runs evaluators, all of them or `only` those named, and merges what they found by section."""
    metrics: dict[str, Any] = {}
    tables: list[Table] = []
    for name, evaluator in evaluators.items():
        if only and name not in only:
            continue
        if (results := evaluator(context)) is None:
            continue
        for section, values in results.metrics.items():
            merge = isinstance(values, dict) and isinstance(metrics.get(section), dict)
            metrics[section] = metrics[section] | values if merge else values
        tables.extend(results.tables)
    return Results(metrics, tuple(tables))


def evaluate(experiment: Experiment, evaluation: Evaluation, folder: Path) -> dict[str, Any]:
    """Scores a checkpoint, prints tables and writes `eval/<step>/metrics.json`.

    Finished batches lie in `eval/<step>/partial` until it ends: after a kill, the same command goes on from them.

    Returns:
      the metrics by section, with Estimates.
    """
    step = workdir.newest(folder, evaluation.best)
    params = load_params(experiment, folder, step, evaluation.best)
    out = folder / "eval" / (f"{step}-{evaluation.best}" if evaluation.best else str(step))
    report.say(f"evaluating step {step}; the first batch of each measurement takes longer, while it is compiled")
    partial = PartialResults(out / "partial" / workdir.fingerprint(folder, step, experiment.config, evaluation.best))
    results = measure(evaluation.context(experiment, params, out, partial), evaluation.evaluators)
    metrics = {"step": step, **results.metrics}
    report.write_json(out / "metrics.json", plain(metrics))
    partial.forget()
    report.say(f"{experiment.name}, step {step} (mean +- standard error)")
    for table in results.tables:
        report.say("\n".join(["", *([table.title] if table.title else []), report.table(table.rows), *table.notes]))
    report.say(f"wrote {out / 'metrics.json'}")
    return metrics


def prepare(experiment: Experiment, evaluation: Evaluation, features: FeatureName) -> None:
    """`--mode=stats`: takes the training data's features, which every evaluation on this data set then finds."""
    cache_dir, x = evaluation.cache_dir or caches.folder(), experiment.data.train.x
    extract = extractor(features, experiment.data, cache_dir, evaluation.data_dir or default_dir())
    statistics(extract, x, cache_dir)
    report.say(f"{extract.name}: features of {len(x)} training examples are in {cache_dir / 'statistics'}")


def plain(value: Any) -> Any:
    """Estimates as {"value", "stderr"}, for JSON."""
    if isinstance(value, Estimate):
        return value._asdict()
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    return {name: plain(entry) for name, entry in value.items()} if isinstance(value, dict) else value
