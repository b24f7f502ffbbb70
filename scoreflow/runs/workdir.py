"""The folder of a run: its stored settings, and its newest whole checkpoint."""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scoreflow.runs import checkpoint, parallel, renamed, report
from scoreflow.runs.best import folder_of
from scoreflow.runs.errors import UserError
from scoreflow.types import Params

# Settings that may change between two commands on one folder, because they do not change what has been learned so far.
_FREE_TO_RESUME = (
    "eval.",
    "sampling.",
    "sampler.",
    "grid.",
    "plan.",
    "checkpoint",
    "data.dir",
    "training.steps",
    "training.keep",
    "training.fsdp",
    "training.log_every",
    "training.validate_every",
    "training.checkpoint_every",
    "training.sample_every",
)
_FREE_TO_USE = (*_FREE_TO_RESUME, "training.", "sample_times.", "weight.", "loss.", "penalty.", "init_from")


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out = {}
    for key, value in config.items():
        name = prefix + key
        out.update(_flat(value, name + ".") if isinstance(value, dict) else {name: value})
    return out


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they are read back from JSON: lists for tuples."""
    return json.loads(json.dumps(dict(settings)))


def default(config: str) -> Path:
    """The default folder of a run: runs/<name> for <path>, runs/<name>-<variant> for <path>:<variant>."""
    path, _, variant = config.partition(":")
    return Path("runs") / (Path(path).stem + (f"-{variant}" if variant else ""))


def stored_settings(workdir: Path) -> dict[str, Any]:
    """The settings of the run in a folder, by today's dotted names; empty where there is no run.

    Raises:
      UserError: if its `config.json` is unreadable.
    """
    path = workdir / "config.json"
    if not path.exists():
        return {}
    try:
        return renamed.translate(_flat(json.loads(path.read_text())["config"]))
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is unreadable; choose another --workdir or delete it") from error


def _names_first(name: str) -> tuple[bool, str]:
    """Sorts what is chosen before the settings that the choice brings."""
    return not name.endswith(".name"), name


def _compare(
    workdir: Path, config: Mapping[str, Any], defaults: Mapping[str, Any] | None
) -> list[tuple[str, Any, Any]]:
    """Rows (name, stored value, value in `config`) by name; a setting that one of the two lacks has its default."""
    usual, before = _plain(defaults or {}), stored_settings(workdir)
    before, now = usual | before if before else {}, usual | _flat(_plain(config))
    return [(name, before.get(name), now.get(name)) for name in sorted(before.keys() | now.keys(), key=_names_first)]


def check_same(
    workdir: Path,
    config: Mapping[str, Any],
    settings: tuple[str, ...],
    at_most: tuple[str, ...] = (),
    *,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Refuses to start from a run that had other values of some settings.

    Args:
      workdir: the folder of the run to start from.
      config: all settings of this run, as nested dicts of plain values.
      settings: the beginnings of the dotted names of those that must be the same.
      at_most: names of numbers that may also be lower than in the other run.
      defaults: dotted name -> value of a setting that either run leaves out, as runs of older versions do.

    Raises:
      UserError: naming the first difference.
    """
    for name, before, now in _compare(workdir, config, defaults):
        if name in at_most and before is not None and (np.inf if now is None else now) <= before:
            continue
        if name.startswith(settings) and before != now:
            raise UserError(
                f"{workdir} was trained with {name} = {before!r}, not {now!r}, and a run that starts from it needs the "
                "same"
            )


def claim(workdir: Path, config: Mapping[str, Any], *, resume: bool, defaults: Mapping[str, Any] | None = None) -> None:
    """Makes sure that the folder is free or belongs to a run of this config.

    Args:
      workdir: the folder of the run.
      config: all settings, as nested dicts of plain values.
      resume: whether training will continue in it: then `config.json` is written. Other uses may change more of it.
      defaults: dotted name -> value of a setting that the stored run or `config` leaves out, as runs of older versions
        do.

    Raises:
      UserError: if the folder contains a run of another config; it names the first difference.
    """
    if stored_settings(workdir):
        free = _FREE_TO_RESUME if resume else _FREE_TO_USE
        for name, before, now in _compare(workdir, config, defaults):
            if not name.startswith(free) and before != now:
                raise UserError(
                    f"{workdir} holds a run with {name} = {before!r}, not {now!r}; choose another --workdir, or set it "
                    "back"
                )
    if resume:
        content = {"config": config, "versions": versions(), "devices": parallel.describe()}
        report.write_json(workdir / "config.json", content)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    names = ("scoreflow", "jax", "jaxlib", "flax", "optax", "diffrax", "numpy", "scikit-learn")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def checkpoints(workdir: Path, best: str = "") -> Path:
    """The folder of the run's checkpoints, or of the best by a measure."""
    return folder_of(workdir, best) if best else workdir / "checkpoints"


def fingerprint(workdir: Path, step: int, config: Mapping[str, Any], best: str = "") -> str:
    """A digest of a checkpoint, all settings and the packages' versions: where it is the same, so are results."""
    sealed = checkpoint.seal_of(checkpoints(workdir, best), step)
    content = json.dumps([sealed, config, versions()], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def newest(workdir: Path, best: str = "") -> int:
    """The newest whole checkpoint, or the best by a measure.

    Raises:
      UserError: if there is none.
    """
    step = checkpoint.latest(checkpoints(workdir, best), warn=report.warn)
    if step is None and best:
        raise UserError(f"{workdir} keeps no best checkpoint by {best}; train with training.best = ({best!r},)")
    if step is None:
        raise UserError(f"{workdir} holds no usable checkpoint; train first (--mode=train) or give the right --workdir")
    return step


def components(workdir: Path, step: int) -> set[str]:
    """Names of the components of a model, at the top of a checkpoint's averaged parameters."""
    return checkpoint.names(checkpoints(workdir), step, "ema_params")


def averaged(workdir: Path, step: int, like: Params, best: str = "") -> Params:
    """The averaged parameters of a checkpoint, on all devices; `like` is a tree of their shapes."""
    return checkpoint.restore(checkpoints(workdir, best), step, {"ema_params": like})["ema_params"]
