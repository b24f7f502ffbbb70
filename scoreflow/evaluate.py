"""Evaluation: a loop over evaluators, each with its standard errors and its cost."""

import textwrap
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scoreflow import draw
from scoreflow.data import DataError, Dataset, describe, digest, fingerprints
from scoreflow.data import foreign as foreign_samples
from scoreflow.data.fetch import default_dir
from scoreflow.evaluators.context import Context, EvalOptions, Evaluators, Results, Table, context
from scoreflow.evaluators.features import extractor, read_reference, statistics
from scoreflow.evaluators.foreign import foreign
from scoreflow.experiment import Experiment, load_newest
from scoreflow.metrics import Estimate, frechet, reference_file
from scoreflow.metrics.kernel import MIN_SAMPLES
from scoreflow.runs import caches, files, lock, parallel, report, workdir
from scoreflow.runs.partial import NONE, PartialResults
from scoreflow.types import Params

_COLUMNS = 100  # characters in a line of notes


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
    examples: dict[str, np.ndarray] = {}
    for name, evaluator in evaluators.items():
        if only and name not in only:
            continue
        if (results := evaluator(context)) is None:
            continue
        for section, values in results.metrics.items():
            merge = isinstance(values, dict) and isinstance(metrics.get(section), dict)
            metrics[section] = metrics[section] | values if merge else values
        tables.extend(results.tables)
        examples |= results.examples
    return Results(metrics, tuple(tables), examples)


def evaluate(experiment: Experiment, evaluation: Evaluation, folder: Path) -> dict[str, Any]:
    """Scores a checkpoint, prints tables and writes `eval/<step>/metrics.json` and `examples.npz`.

    Where that folder has an evaluation with other settings, another is made with a further number; its `eval.json` says
    how it was made. Finished batches lie in `partial` there until it ends: after a kill, the same command goes on from
    them. Where the options name samples made elsewhere, these are measured instead: see `evaluate_samples`.

    Returns:
      the metrics by section, with Estimates.

    Raises:
      UserError: if another process is at the same evaluation, or the reference of the options cannot be used.
    """
    options = evaluation.options
    if options.samples:
        return evaluate_samples(experiment.data, evaluation, folder)
    reference = _reference(options, experiment.data)
    step, checkpoint, params = load_newest(experiment, folder, evaluation.best)
    made: dict[str, Any] = {"step": step, "checkpoint": checkpoint, **reference, "data": describe(experiment.data)}
    made["settings"] = workdir.usage(experiment.config, ("eval.", "sampling.", "sampler.", "grid."))
    stem = f"{step}-{evaluation.best}" if evaluation.best else str(step)
    out = workdir.numbered(made, folder / "eval", stem, "eval.json")
    fingerprint = workdir.fingerprint(made, experiment.config)
    report.say(f"evaluating step {step}; the first batch of each measurement takes longer, while it is compiled")
    with lock.held(out, "this evaluation"):
        partial = PartialResults(out / "partial" / fingerprint)
        results = measure(evaluation.context(experiment, params, out, partial), evaluation.evaluators)
        metrics = {"step": step, **results.metrics}
        if results.examples:
            _keep_examples(out / "examples.npz", experiment.data, results.examples)
        report.write_json(out / "metrics.json", plain(metrics))
        partial.forget()
    _print(f"{experiment.name}, step {step} (mean ± standard error)", results.tables, out)
    return metrics


def _keep_examples(path: Path, data: Dataset, examples: Mapping[str, np.ndarray]) -> None:
    """Writes a number for each test example that was scored, so that two runs can be compared example by example.

    The arrays are `index`, the example's row in the test split; `fingerprint`, a number that depends on its content;
    `bits_per_dim` or `nats`, the mean over draws; and `bound`, where it is measured.
    """
    if parallel.is_main():
        count = len(next(iter(examples.values())))
        content: dict[str, Any] = {"index": np.arange(count), "fingerprint": fingerprints(data.test.x[:count])}
        content |= examples
        with files.replacing(path) as scratch:
            np.savez(scratch, **content)


def evaluate_samples(data: Dataset, evaluation: Evaluation, folder: Path) -> dict[str, Any]:
    """Measures samples made elsewhere against a data set, without a model; writes `eval/samples-<name>/metrics.json`.

    Results of other samples, data or settings are not overwritten, and a kill loses one batch, as with `evaluate`.

    Args:
      data: what the samples imitate.
      evaluation: its options name the samples, the features and the reference.
      folder: of a run, or any other.

    Returns:
      the metrics by section, with Estimates.

    Raises:
      UserError: if the samples, the weights of the features or the reference cannot be used.
    """
    options = evaluation.options
    path = files.local(options.samples, "eval.samples")
    made: dict[str, Any] = {"samples": str(path.resolve()), "features": options.features}
    made |= {"neighbors": options.neighbors, "data": describe(data), **_reference(options, data)}
    x = foreign_samples.read(path, data)
    if len(x) < (least := max(MIN_SAMPLES, options.neighbors + 1)):
        raise DataError(f"eval.samples = {options.samples}: {len(x)} samples are too few; {least} are needed")
    cache_dir, data_dir = evaluation.cache_dir or caches.folder(), evaluation.data_dir or default_dir()
    extract = extractor(options.features, data, cache_dir, data_dir)
    made["digest"] = digest(x)[:16]
    out = workdir.numbered(made, folder / "eval", f"samples-{path.resolve().stem}", "eval.json")
    report.say(f"measuring {len(x)} samples of {options.samples}")
    with lock.held(out, "this evaluation"):
        partial = PartialResults(out / "partial" / workdir.digest_of([made, workdir.versions()]))
        results = foreign(x, data, extract, options, cache_dir, partial)
        report.write_json(out / "metrics.json", plain(results.metrics))
        partial.forget()
    _print(f"{options.samples} (mean ± standard error)", results.tables, out)
    return results.metrics


def _print(title: str, tables: Iterable[Table], out: Path) -> None:
    report.say(report.heading(title))
    for table in tables:
        head = [report.heading(table.title)] if table.title else []
        notes = [textwrap.fill(note, _COLUMNS) for note in table.notes]
        report.say("\n".join(["", *head, report.table(table.rows), *notes]))
    written = sorted(path.name for path in out.glob("*.png"))
    report.say(f"wrote {out / 'metrics.json'}" + (f", and beside it {', '.join(written)}" if written else ""))


def _reference(options: EvalOptions, data: Dataset) -> dict[str, str]:
    """A digest of the reference statistics, which are read once before anything takes time."""
    if not options.reference:
        return {}
    mean, covariance = read_reference(options.reference, options.features, data)
    return {"reference": digest(mean, covariance)[:16]}


def prepare(experiment: Experiment, evaluation: Evaluation, folder: Path) -> None:
    """`--mode=stats`: takes the training data's features, which every evaluation on this data set then finds.

    Their mean and covariance are written to `statistics/<features>.npz` in the folder, in the form that other programs
    read, and some of the examples to the `.png` of that name: a run's own `data.png` may be of other data.
    """
    for line in experiment.facts():
        report.say(f"data: {line}")
    cache_dir, data, features = evaluation.cache_dir or caches.folder(), experiment.data, evaluation.options.features
    extract = extractor(features, data, cache_dir, evaluation.data_dir or default_dir())
    made = {"features": extract.name, "key": extract.key, "examples": len(data.train.x), "data": describe(data)}
    stem = workdir.numbered(made, folder / "statistics", features)
    path, picture = (stem.with_name(f"{stem.name}{end}") for end in (".npz", ".png"))
    if draw.write_examples(experiment, picture):
        report.say(f"data: some of them are in {picture}")
    kept = statistics(extract, data.train.x, cache_dir)
    if parallel.is_main():
        reference_file.write(path, *frechet.mean_and_covariance(kept.moments))
    report.say(f"{extract.name}: features of {kept.moments.n} training examples are in {cache_dir / 'statistics'}")
    report.say(f"wrote {path}: mu and sigma of the features of {kept.moments.n} training examples")


def plain(value: Any) -> Any:
    """Estimates as {"value", "stderr"}, for JSON."""
    if isinstance(value, Estimate):
        return value._asdict()
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    return {name: plain(entry) for name, entry in value.items()} if isinstance(value, dict) else value
