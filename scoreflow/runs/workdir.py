"""The folder of a run: its stored settings, and its newest whole checkpoint."""

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scoreflow.runs import checkpoint, lock, parallel, renamed, report
from scoreflow.runs.best import folder_of, folders
from scoreflow.runs.errors import UserError
from scoreflow.types import Params

USE = ("eval.", "sampling.", "sampler.", "grid.", "plan.", "checkpoint")
"""Beginnings of the names of settings that say how a finished run is used."""

FREE_TO_RESUME = (
    *USE,
    "data.dir",
    "model.remat",
    "training.steps",
    "training.grad_accum",
    "training.steps_per_dispatch",
    "training.keep",
    "training.best",
    "training.fsdp",
    "training.log_every",
    "training.validate_every",
    "training.checkpoint_every",
    "training.sample_every",
    "training.pictures",
)
"""Settings that may change between two commands on one folder: they do not change what has been learned so far."""
_FREE_TO_USE = (
    *FREE_TO_RESUME,
    "training.",
    "sample_times.",
    "weight.",
    "loss.",
    "penalty.",
    "init_from",
    "augment.probability",
    "model.dtype",
    "model.dropout",
)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> value."""
    out = {}
    for key, value in config.items():
        name = prefix + key
        out.update(flatten(value, name + ".") if isinstance(value, Mapping) else {name: value})
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
    stored = renamed.translate(flatten(_stored(workdir).get("config", {})))
    if stored.get("data.path"):  # the rule before it was a setting
        stored.setdefault("data.split", "shuffled")
    return stored


def stored_name(workdir: Path) -> str:
    """The name of the config that the run in a folder was made with; that of the folder where it is not known."""
    return _stored(workdir).get("name") or workdir.name


def stored_data(workdir: Path) -> dict[str, Any]:
    """What `record` was given of the data of the run in a folder; empty where there is none."""
    return _stored(workdir).get("data") or {}


def _stored(workdir: Path) -> dict[str, Any]:
    path = workdir / "config.json"
    try:
        content = json.loads(path.read_text())
        flatten(content["config"])
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is unreadable; choose another --workdir or delete it") from error
    return content


def _names_first(name: str) -> tuple[bool, str]:
    """Sorts what is chosen before the settings that the choice brings."""
    return not name.endswith(".name"), name


def _compare(
    workdir: Path, config: Mapping[str, Any], defaults: Mapping[str, Any] | None
) -> list[tuple[str, Any, Any]]:
    """Rows (name, stored value, value in `config`) by name; a setting that one of the two lacks has its default."""
    usual = _plain(defaults or {})
    before, now = usual | stored_settings(workdir), usual | flatten(_plain(config))
    return [(name, before.get(name), now.get(name)) for name in sorted(before.keys() | now.keys(), key=_names_first)]


def _unknown(workdir: Path, config: Mapping[str, Any], defaults: Mapping[str, Any] | None) -> dict[str, Any]:
    """Stored settings that this version does not have, though the same is chosen in their section."""
    stored, now = stored_settings(workdir), _plain(defaults or {}) | flatten(_plain(config))
    choice = lambda name: f"{name.partition('.')[0]}.name"
    return {k: v for k, v in stored.items() if k not in now and stored.get(choice(k)) == now.get(choice(k))}


def _other_version(workdir: Path, name: str, value: Any, advice: str) -> UserError:
    version = (_stored(workdir).get("versions") or {}).get("scoreflow", "of unknown number")
    words = f"was made by another version of scoreflow ({version}), which had {name} = {value!r}"
    return UserError(f"{workdir} {words}; this one has no such setting: {advice}")


def _anew(workdir: Path) -> str:
    return f"begin a new run with --config.init_from={shlex.quote(str(workdir))}"


def _learned(workdir: Path) -> bool:
    """Whether a run has kept anything that it learned."""
    return any(checkpoint.any_step(folder) for folder in (checkpoints(workdir), *folders(workdir)))


def _say_if_without_settings(workdir: Path) -> bool:
    """Whether there are checkpoints and no `config.json`; a line then says that little is known of them."""
    if stored_settings(workdir) or not checkpoint.any_step(checkpoints(workdir)):
        return False
    report.warn(f"{workdir} has checkpoints and no config.json: they are taken for this config's if their shapes fit")
    return True


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
    if _say_if_without_settings(workdir):
        return
    unknown = _unknown(workdir, config, defaults)
    for name, before, now in _compare(workdir, config, defaults):
        if name in unknown and name.startswith(settings):
            raise _other_version(workdir, name, before, "start from it with that version")
        if name in at_most and before is not None and (np.inf if now is None else now) <= before:
            continue
        if name.startswith(settings) and before != now:
            before, now = (tuple(value) if isinstance(value, list) else value for value in (before, now))
            raise UserError(
                f"{workdir} was trained with {name} = {before!r}, not {now!r}, and a run that starts from it needs the "
                "same"
            )


def check(
    workdir: Path,
    config: Mapping[str, Any],
    *,
    resume: bool,
    defaults: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
) -> None:
    """Refuses a folder that holds a run of another config, or one trained on other data.

    A run that ended before its first checkpoint has learned nothing, and another may take its place. Settings that this
    version does not have are named; where training would go on without one that it learned with, that is refused.

    Args:
      workdir: the folder of the run.
      config: all settings, as nested dicts of plain values.
      resume: whether training will continue in it. Other uses may change more of the settings, and other data under the
        same settings are only named.
      defaults: dotted name -> value of a setting that the stored run or `config` leaves out, as runs of older versions
        do.
      data: what describes the data, as `record` is given; nothing where they are not there.

    Raises:
      UserError: naming the first difference.
    """
    if not stored_settings(workdir):
        if not resume:
            _say_if_without_settings(workdir)
        return
    if resume and not _learned(workdir):
        return
    known, now = stored_data(workdir), dict(data or {})
    _refuse_changes(workdir, config, defaults, resume=resume, moved=bool(known))
    if not known or all(known.get(name) == value for name, value in now.items()):
        return
    words = ", ".join(
        f"{name} was {known.get(name)}, is {value}" for name, value in now.items() if known.get(name) != value
    )
    message = f"{workdir} holds a run that was trained on other data: {words}"
    if resume:
        raise UserError(f"{message}; bring the old data back, or {_anew(workdir)}")
    report.warn(message)


def _apart(before: Any, now: Any) -> bool:
    """Whether two values differ; the file of a part of one's own, as in /here/my_sde.py:cubic, may have moved."""
    words = [str(value) for value in (before, now)]
    if all(".py:" in each for each in words):
        return words[0].rpartition(":")[2] != words[1].rpartition(":")[2]
    return before != now


def _refuse_changes(
    workdir: Path, config: Mapping[str, Any], defaults: Mapping[str, Any] | None, *, resume: bool, moved: bool = False
) -> None:
    """Refuses settings that may not change; the path of the data may where they are known by their digest (`moved`)."""
    free = (FREE_TO_RESUME if resume else _FREE_TO_USE) + (("data.path",) if moved else ())
    unknown = _unknown(workdir, config, defaults)
    for name, before, now in _compare(workdir, config, defaults):
        if name in unknown and resume and not name.startswith(free):
            raise _other_version(workdir, name, before, f"go on with that version, or {_anew(workdir)}")
        if name not in unknown and not name.startswith(free) and _apart(before, now):
            before, now = (tuple(value) if isinstance(value, list) else value for value in (before, now))
            raise UserError(
                f"{workdir} holds a run with {name} = {before!r}, not {now!r}; choose another --workdir, or set it back"
            )
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        words = ", ".join(f"{name} = {value!r}" for name, value in list(unknown.items())[:3])
        report.warn(f"{workdir} has settings that this version does not know, and which are ignored: {words}{more}")


def check_same_experiment(workdir: Path, config: Mapping[str, Any]) -> None:
    """Refuses to train on in the folder of another experiment; settings that only one of the two states are its own.

    Raises:
      UserError: naming the first difference.
    """
    if config and _learned(workdir) and not _say_if_without_settings(workdir):
        ours, stored = flatten(config), stored_settings(workdir)
        _refuse_changes(workdir, config, {**ours, **stored}, resume=True, moved=True)


def record(workdir: Path, config: Mapping[str, Any], *, name: str = "", data: Mapping[str, Any] | None = None) -> None:
    """Writes `config.json`: all settings, and what the run was made with.

    Args:
      workdir: the folder of the run.
      config: all settings, as nested dicts of plain values.
      name: of the config, as it was given.
      data: what describes the data, such as their number and their digest.
    """
    content = {"config": config, "name": name, "data": dict(data or {}), "versions": versions()}
    report.write_json(workdir / "config.json", content | {"devices": parallel.describe()})


def numbered(made: Mapping[str, Any], parent: Path, stem: str, file: str = "") -> Path:
    """The path of a result: the first of `stem`, `stem-2`, `stem-3`, ... that is free or holds the same result.

    A result is known by how it was made. So nothing is overwritten but what would come out the same. All processes call
    it, and the first decides: the others may not see its files, or see them late.

    Args:
      made: how, in plain values.
      parent: the folder.
      stem: the first name.
      file: where the result is a folder, the file in it that says how it was made; otherwise `<name>.json` says so.
    """
    name_of = lambda number: stem if number == 1 else f"{stem}-{number}"
    path_of = lambda number: parent / name_of(number) / file if file else parent / f"{name_of(number)}.json"
    wanted, number = _plain(made), 1
    while parallel.is_main() and not _take(path_of(number), wanted, alone=bool(file)):
        number += 1
    return parent / name_of(int(parallel.from_first(np.array(number))))


def _take(path: Path, wanted: Any, *, alone: bool) -> bool:
    """Whether a note of how a result is made is at a path: written now, if the path is free, or before.

    Args:
      path: of the note.
      wanted: its content.
      alone: whether the result has a folder of its own, which must be empty; otherwise no file may share its stem.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not any(path.parent.iterdir() if alone else path.parent.glob(f"{path.stem}.*")):
        with contextlib.suppress(FileExistsError), open(path, "x") as note:  # another may do the same
            json.dump(wanted, note, indent=2)
            return True
    return _json(path) == wanted


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def usage(config: Mapping[str, Any], sections: tuple[str, ...]) -> dict[str, Any]:
    """The settings of some sections, and the precision of the network: what a result of a checkpoint depends on."""
    kept = {name: value for name, value in flatten(config).items() if name.startswith((*sections, "model.dtype"))}
    return _plain(kept)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    names = ("scoreflow", "jax", "jaxlib", "flax", "optax", "diffrax", "numpy", "scikit-learn")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}


def checkpoints(workdir: Path, best: str = "") -> Path:
    """The folder of the run's checkpoints, or of the best by a measure."""
    return folder_of(workdir, best) if best else workdir / "checkpoints"


def fingerprint(made: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """A digest of how a result is made, all settings and the packages' versions: where it is the same, so are results.

    Args:
      made: as of `numbered`, with the digests of the checkpoint and of the data.
      config: all settings, as nested dicts of plain values.
    """
    return digest_of([_plain(made), config, versions()])


def digest_of(content: Any) -> str:
    """A digest of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def sealed(workdir: Path, step: int, best: str = "") -> str:
    """A digest of a checkpoint alone."""
    return hashlib.sha256(checkpoint.seal_of(checkpoints(workdir, best), step).encode()).hexdigest()[:16]


def newest(workdir: Path, best: str = "") -> int:
    """The newest whole checkpoint, or the best by a measure.

    Raises:
      UserError: if there is none.
    """
    folder, training = checkpoints(workdir, best), lock.busy(workdir)
    step = checkpoint.latest(folder, warn=report.warn, saving=training)
    if step is None and (damage := checkpoint.all_damaged(folder)):
        raise UserError(f"{workdir} cannot be used: {damage}; bring back a copy of {folder}")
    if step is None and training:
        raise UserError(f"{workdir} is being trained and has saved no checkpoint in {folder} yet; wait for it")
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
