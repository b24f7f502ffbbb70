"""What runs have written, read so that nothing stops it: runs in training, of older versions, and damaged files."""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from scoreflow.data import UNREADABLE
from scoreflow.runs import cost, files, lock, workdir
from scoreflow.runs.cost import Cost
from scoreflow.runs.errors import UserError
from scoreflow.runs.workdir import flatten

Json = dict[str, Any]
Warn = Callable[[str], None]
"""Is told of a file that cannot be read, in one line."""

_ABOUT: dict[str, type] = {"name": str, "data": dict, "versions": dict, "devices": str}
_LARGEST, _LARGEST_STEP = 1e30, 10**15
_DENSITIES = ("bits_per_dim", "nats", "bound")


class Evaluated(NamedTuple):
    """What `--mode=eval` left in one folder.

    Attributes:
      name: of the folder, such as `2800` or `2800-2`.
      step: of the checkpoint.
      metrics: as in `metrics.json`.
      settings: of the evaluation and of sampling, by dotted name; empty for versions that did not keep them.
      data: what describes the data; empty for the same versions.
      examples: by name, a number for every test example that was scored, with `index` and `fingerprint`, [N] each;
        empty for versions that did not keep them.
      when: seconds since the epoch.
    """

    name: str
    step: int
    metrics: Json
    settings: Json
    data: Json
    examples: dict[str, np.ndarray]
    when: float


class Curves(NamedTuple):
    """The loss by log-SNR where training ended.

    Attributes:
      log_snr: increasing, [P].
      train, test: noise-prediction error per dimension there, [P] each.
      examples: behind each curve; curves of the same data, seed and number have the same examples and noise.
    """

    log_snr: np.ndarray
    train: np.ndarray
    test: np.ndarray
    examples: Json


class Run(NamedTuple):
    """What a run's folder says of it.

    Attributes:
      name: the name of the folder, or as much of its path as tells it from the others.
      folder: of the run.
      settings: by dotted name; those it left out have their defaults, where this version knows the run's choices.
      about: `name` of the config, `data`, `versions` and `devices`, as in `config.json`; empty where it lacks them.
      training: whether a process trains in the folder now.
      lines: those of `metrics.jsonl`.
      cost: of a training step.
      curves: the loss by log-SNR at the end of training; None where it is not kept.
      evaluations: from the first step to the last, and of one step from the least thorough to the most: that with the
        most test examples, draws and samples, and the newest of equals.
    """

    name: str
    folder: Path
    settings: Json
    about: Json
    training: bool
    lines: list[Json]
    cost: Cost
    curves: Curves | None
    evaluations: tuple[Evaluated, ...]

    @property
    def step(self) -> int | None:
        """The newest step that the log or an evaluation names; None where nothing does."""
        steps = [line["step"] for line in self.lines] + [each.step for each in self.evaluations]
        return max(steps, default=None)


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, if only one that has just begun."""
    marks = ("config.json", "metrics.jsonl", "checkpoints", "best")
    return any((folder / name).exists() for name in marks) or (folder.is_dir() and lock.busy(folder))


def folders(words: str) -> list[Path]:
    """The folders of runs that `--runs` names: each word between commas is a run, or a folder that holds runs.

    Raises:
      UserError: for what is neither, and for a run that is named twice.
    """
    out: list[Path] = []
    for word in filter(None, map(str.strip, words.split(","))):
        path = files.local(word, "--runs")
        if not path.is_dir():
            raise UserError(f"--runs: {word} is {'a file' if path.exists() else 'no folder'}; give folders of runs")
        runs = [path] if is_run(path) else sorted(filter(is_run, (each for each in path.iterdir() if each.is_dir())))
        if not runs:
            raise UserError(f"--runs: {word} is no run and holds none: there is no config.json")
        out += runs
    if not out:
        raise UserError("--runs is empty; give folders of runs with commas between them, or a folder that holds runs")
    seen: dict[Path, Path] = {}
    for path in out:
        if (first := seen.setdefault(path.resolve(), path)) is not path:
            raise UserError(f"--runs: {path} is given twice" + (f", also as {first}" if first != path else ""))
    return out


def names(paths: Sequence[Path]) -> list[str]:
    """A name for each folder: its own, with as many folders above it as are needed to tell all of them apart."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        short = ["/".join(each[-depth:]) for each in parts]
        if len(set(short)) == len(short):
            return short
    return [str(path) for path in paths]


def read(folder: Path, name: str, complete: Callable[[Json], Json], warn: Warn) -> Run:
    """Reads a run's folder.

    Args:
      folder: of the run.
      name: see `Run`.
      complete: settings by dotted name -> the same with defaults; raises UserError for choices that are unknown.
      warn: is told of every file that cannot be read, in one line each.
    """
    about = json_of(folder / "config.json", warn)
    settings: Json = {}
    try:
        if about:
            settings = workdir.stored_settings(folder)
            settings = settings | complete(settings)
    except (UserError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        warn(f"{folder}: its settings are shown as they are, without defaults: {error}")
    try:
        costs = cost.read(folder)
        if not all(value is None or (_is_number(value) and value >= 0) for value in costs):
            raise ValueError("its numbers are none of a step")
    except (OSError, ValueError) as error:
        costs = cost.UNKNOWN
        warn(_damaged(cost.path(folder), error))
    return Run(
        name=name,
        folder=folder,
        settings=json.loads(json.dumps(settings)),
        about={key: value if isinstance(value := about.get(key), kind) else kind() for key, kind in _ABOUT.items()},
        training=lock.busy(folder),
        lines=_lines(folder / "metrics.jsonl", warn),
        cost=costs,
        curves=_curves(folder / "loss_by_log_snr.json", warn),
        evaluations=_evaluations(folder / "eval", warn),
    )


def _damaged(path: Path, error: Exception | str) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
    return f"{path} cannot be read and is left out: {reason or type(error).__name__}"


def json_of(path: Path, warn: Warn) -> Json:
    """The names and values in a file; empty where there is none, or none that can be read."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        warn(_damaged(path, error))
        return {}
    if not isinstance(content, dict):
        warn(_damaged(path, "it holds no names"))
        return {}
    return content


def _lines(path: Path, warn: Warn) -> list[Json]:
    """The lines of a log; the last may still be in writing."""
    try:
        texts = path.read_text(errors="replace").split("\n")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        warn(_damaged(path, error))
        return []
    out, damaged = [], 0
    for text in filter(None, texts[:-1] if texts[-1] else texts):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if isinstance(line, dict) and _is_step(line.get("step")):
            out.append(line)
        else:
            damaged += 1
    if damaged:
        warn(f"{path}: {damaged} line{'s' if damaged > 1 else ''} cannot be read and left out")
    return out


def _curves(path: Path, warn: Warn) -> Curves | None:
    content = json_of(path, warn)
    if not content:
        return None
    try:
        rows = [np.array(content[name], np.float64) for name in ("log_snr", "train", "test")]
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        warn(_damaged(path, error))
        return None
    if rows[0].ndim != 1 or not rows[0].size or any(row.shape != rows[0].shape for row in rows):
        warn(_damaged(path, "its curves have no points, or not equally many"))
        return None
    if not all((np.abs(row) < _LARGEST).all() for row in rows):
        warn(_damaged(path, "its curves are not finite"))
        return None
    log_snr, train, test = (row[np.argsort(rows[0])] for row in rows)
    return Curves(log_snr, train, test, content.get("examples") or {})


def _evaluations(folder: Path, warn: Warn) -> tuple[Evaluated, ...]:
    out = []
    try:
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        warn(_damaged(folder, error))
        return ()
    for path in paths:
        digits = re.match(r"\d+", path.name)  # others measure samples that were made elsewhere
        if digits is None or not (metrics := json_of(path / "metrics.json", warn)):
            continue
        step, made = metrics.get("step"), json_of(path / "eval.json", warn)
        settings, data = (made.get(name) for name in ("settings", "data"))
        out.append(
            Evaluated(
                name=path.name,
                step=step if _is_step(step) else int(digits[0]),
                metrics=metrics,
                settings=flatten(settings) if isinstance(settings, Mapping) else {},
                data=dict(data) if isinstance(data, Mapping) else {},
                examples=_examples(path / "examples.npz", warn),
                when=os.path.getmtime(path / "metrics.json"),
            )
        )
    return tuple(sorted(out, key=lambda each: (each.step, *_thoroughness(each), each.when)))


def _thoroughness(evaluated: Evaluated) -> tuple[float, ...]:
    """Test examples that were scored, draws of each, and samples; 0 where it is not known."""
    options = (evaluated.settings.get(f"eval.{name}") for name in ("draws", "num_samples"))
    return len(evaluated.examples.get("index", ())), *(number(value)[0] or 0.0 for value in options)


def _examples(path: Path, warn: Warn) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as kept:
            arrays = {name: kept[name] for name in ("index", "fingerprint", *_DENSITIES) if name in kept.files}
    except FileNotFoundError:
        return {}
    except UNREADABLE as error:
        warn(_damaged(path, error))
        return {}
    if not {"index", "fingerprint"} <= arrays.keys() or len({array.shape for array in arrays.values()}) > 1:
        warn(_damaged(path, "its arrays are not equally long"))
        return {}
    return arrays


def number(value: Any) -> tuple[float | None, float | None]:
    """A number of `metrics.json` and its standard error; None for what is missing or not finite."""
    value, stderr = (value.get("value"), value.get("stderr")) if isinstance(value, Mapping) else (value, None)
    return (value if _is_number(value) else None, stderr if _is_number(stderr) else None)


def _is_number(value: Any) -> bool:
    """Whether it is a number that is finite, and that something can have had as a result."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def _is_step(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST_STEP
