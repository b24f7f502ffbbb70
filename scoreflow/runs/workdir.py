"""The folder of a run: what was configured there, and which checkpoint is the newest whole one."""

import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path

import numpy as np

from scoreflow.runs import checkpoint, parallel, report
from scoreflow.runs.best import folder_of
from scoreflow.runs.errors import UserError

# What may change between two commands on one folder, because it does not change what has been learnt so far.
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
_FREE_TO_USE = (*_FREE_TO_RESUME, "training.", "times.", "weight.", "loss.", "penalty.", "init_from")


def _flat(config: dict, prefix: str = "") -> dict:
    out = {}
    for key, value in config.items():
        name = prefix + key
        out.update(_flat(value, name + ".") if isinstance(value, dict) else {name: value})
    return out


def default(config: str) -> Path:
    """Where a run lives unless it is said: runs/<name> of <path>, runs/<name>-<variant> of <path>:<variant>."""
    path, _, variant = config.partition(":")
    return Path("runs") / (Path(path).stem + (f"-{variant}" if variant else ""))


def _settings(workdir: Path) -> dict:
    """What was configured in a folder, by dotted name; empty where there is no run."""
    path = workdir / "config.json"
    if not path.exists():
        return {}
    try:
        return _flat(json.loads(path.read_text())["config"])
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is unreadable; choose another --workdir or delete it") from error


def check_same(workdir: Path, config: dict, settings: tuple[str, ...], at_most: tuple[str, ...] = ()) -> None:
    """Refuses to build on a run that had other values of `settings`, given by what their dotted names begin with.

    Numbers of `at_most` may also be lower than there.

    Raises:
      UserError: naming the first difference.
    """
    before, now = _settings(workdir), _flat(json.loads(json.dumps(config)))
    for name in sorted(before.keys() | now.keys()):
        if name in at_most and name in before and now.get(name, np.inf) <= before[name]:
            continue
        if name.startswith(settings) and before.get(name) != now.get(name):
            raise UserError(
                f"{workdir} was trained with {name} = {before.get(name)!r}, not {now.get(name)!r}, and what is learnt "
                "on top of it needs the same"
            )


def claim(workdir: Path, config: dict, *, resume: bool) -> None:
    """Makes sure that the folder is free or belongs to a run of this config.

    Args:
      workdir: the folder of the run.
      config: everything that was configured, as nested dicts of plain values.
      resume: whether training will go on there: then `config.json` is written. Other uses may change more of it.

    Raises:
      UserError: if a run of another config lives there; it names the first difference.
    """
    before = _settings(workdir)
    if before:
        now = _flat(json.loads(json.dumps(config)))
        free = _FREE_TO_RESUME if resume else _FREE_TO_USE
        for name in sorted(before.keys() | now.keys()):
            if not name.startswith(free) and before.get(name) != now.get(name):
                raise UserError(
                    f"{workdir} holds a run with {name} = {before.get(name)!r}, not {now.get(name)!r}; choose another "
                    "--workdir, or set it back"
                )
    if resume:
        content = {"config": config, "versions": versions(), "devices": parallel.describe()}
        report.write_json(workdir / "config.json", content)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    names = ("scoreflow", "jax", "jaxlib", "flax", "optax", "diffrax", "numpy", "scikit-learn")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}


def checkpoints(workdir: Path, best: str = "") -> Path:
    """The folder of the run's checkpoints, or of the best by a measure."""
    return folder_of(workdir, best) if best else workdir / "checkpoints"


def fingerprint(workdir: Path, step: int, config: dict, best: str = "") -> str:
    """A digest of a checkpoint and of all that is configured: where it is the same, so are results."""
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


def parts(workdir: Path, step: int) -> set[str]:
    """Names at the top of a checkpoint's averaged parameters."""
    return checkpoint.names(checkpoints(workdir), step, "ema_params")


def averaged(workdir: Path, step: int, like, best: str = ""):
    """The averaged parameters of a checkpoint, on all devices; `like` is a tree of their shapes."""
    return checkpoint.restore(checkpoints(workdir, best), step, {"ema_params": like})["ema_params"]
