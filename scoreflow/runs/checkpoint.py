"""Checkpoints that are either whole or absent. Orbax writes them; a manifest of digests, written last, seals them.

Orbax commits a step by a rename, so a kill during a save leaves the earlier steps as they were. It has no checksums,
so a flipped byte would be read as wrong numbers: hence a file `<step>.sha256.json` for each step. A step without one
was killed between commit and seal and does not count.
"""

import errno
import functools
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scoreflow.runs import files, parallel
from scoreflow.runs.errors import RunError, UserError

UNSEALED = "it was never sealed (killed while saving)"
"""The damage of a step that is still being saved, or whose saving was killed."""

_NO_RESERVATION = {errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


def _manager(directory: Path, *, saving: bool = False) -> Any:
    import orbax.checkpoint as ocp

    _quieten()
    options = ocp.CheckpointManagerOptions(max_to_keep=None, cleanup_tmp_directories=saving)
    return ocp.CheckpointManager(directory.resolve(), options=options)


@functools.cache
def _quieten() -> None:
    """Keeps what Orbax prints of every save, and of a failed one in hundreds of lines, from a person.

    It raises what went wrong, too. Callbacks of a failed save come after the loop that they belong to is closed.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def _seal_path(directory: Path, step: int) -> Path:
    return directory / f"{step}.sha256.json"


def _digests(step_dir: Path) -> dict[str, str]:
    files = sorted(p for p in step_dir.rglob("*") if p.is_file())
    return {str(p.relative_to(step_dir)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _steps(directory: Path) -> list[int]:
    """Committed steps, newest first."""
    if not directory.is_dir():
        return []
    return sorted((int(p.name) for p in directory.iterdir() if p.is_dir() and p.name.isdigit()), reverse=True)


def any_step(directory: Path) -> bool:
    """Whether a step has been committed, whole or damaged."""
    return bool(_steps(directory))


def damage(directory: Path, step: int) -> str:
    """The damage to a step, in words; "" if there is none."""
    try:
        wanted = json.loads(_seal_path(directory, step).read_text())
    except FileNotFoundError:
        return UNSEALED
    except ValueError:
        return "its list of digests is unreadable"
    try:
        actual = _digests(directory / str(step))
    except FileNotFoundError:  # while it was read
        return "its files are being removed"
    wrong = sorted(name for name in wanted.keys() | actual.keys() if wanted.get(name) != actual.get(name))
    return f"{len(wrong)} files are missing or altered, first {wrong[0]}" if wrong else ""


def _reserve(directory: Path, size: int) -> None:
    """Makes sure that `size` bytes can be written: a full disk should be one error, before anything is half-written.

    Some systems and file systems reserve nothing; there the free space has to do. A file without a name can be made
    where nothing else can, hence the folder.
    """
    os.rmdir(tempfile.mkdtemp(dir=directory))
    if hasattr(os, "posix_fallocate"):
        try:
            with tempfile.TemporaryFile(dir=directory) as file:
                os.posix_fallocate(file.fileno(), 0, max(size, 1))
            return
        except OSError as error:
            if error.errno not in _NO_RESERVATION:
                raise
    if shutil.disk_usage(directory).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def save(directory: Path, step: int, state: Any, *, keep: int = 3) -> None:
    """Writes a pytree of arrays as a step and seals it. All processes call it.

    Args:
      directory: folder of the steps; created if missing.
      step: its number, above that of every step there.
      state: pytree of arrays.
      keep: how many steps remain, the newest ones.

    Raises:
      RunError: if it cannot be written; earlier steps are untouched.
    """
    import orbax.checkpoint as ocp

    try:
        directory.mkdir(parents=True, exist_ok=True)
        if parallel.is_main():
            _reserve(directory, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        with _manager(directory, saving=True) as manager:
            written = manager.save(step, args=ocp.args.StandardSave(state))
            manager.wait_until_finished()
        if not written:
            raise ValueError("a step as new is there already")
        if parallel.is_main():
            files.write_text(_seal_path(directory, step), json.dumps(_digests(directory / str(step))))
            for old in _steps(directory)[keep:]:  # once the new one counts, so that there is one at every moment
                shutil.rmtree(directory / str(old), ignore_errors=True)
            for seal in directory.glob("*.sha256.json"):
                if not (directory / seal.name.split(".")[0]).is_dir():
                    seal.unlink()
    except Exception as error:  # orbax wraps errors of the file system in its own types
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise RunError(
            f"checkpoint {directory / str(step)} could not be written ({reason}); earlier ones stand"
        ) from error
    parallel.barrier(f"sealed {step}")


def latest(
    directory: Path,
    *,
    at_most: int | None = None,
    warn: Callable[[str], None] | None = None,
    saving: bool = False,
) -> int | None:
    """The newest step that is whole, or None.

    Args:
      directory: folder of the steps; it need not exist.
      at_most: the newest that counts.
      warn: called with a message for every newer one that is not whole, where there is one that is.
      saving: whether another process is at work in the folder, where a step that comes or goes is no damage.
    """
    messages = []
    for step in _steps(directory):
        if at_most is not None and step > at_most:
            continue
        if not (reason := damage(directory, step)):
            if warn is not None:
                for message in messages:
                    warn(message)
            return step
        if not (saving and (reason == UNSEALED or not (directory / str(step)).exists())):
            messages.append(f"checkpoint {directory / str(step)} is damaged: {reason}; going back to the one before")
    return None


def all_damaged(directory: Path) -> str:
    """What is wrong where steps are there and none is whole, in words; "" otherwise.

    A single step that was never sealed is that of a run which was killed at its first save, and has lost nothing.
    """
    reasons = {step: damage(directory, step) for step in _steps(directory)}
    if not reasons or not all(reasons.values()) or list(reasons.values()) == [UNSEALED]:
        return ""
    newest = max(reasons)
    count = "its only checkpoint is" if len(reasons) == 1 else f"none of its {len(reasons)} checkpoints is"
    return f"{count} whole (step {newest}: {reasons[newest]})"


def seal_of(directory: Path, step: int) -> str:
    """The list of digests of a whole step, as it was written."""
    return _seal_path(directory, step).read_text()


def quarantine(directory: Path, newest: int | None) -> None:
    """Renames every step above `newest` to `<step>.damaged`, so that a resumed run can write that step again."""
    for step in _steps(directory):
        if newest is None or step > newest:
            target = directory / f"{step}.damaged"
            shutil.rmtree(target, ignore_errors=True)
            (directory / str(step)).rename(target)
            _seal_path(directory, step).unlink(missing_ok=True)


def names(directory: Path, step: int, of: str) -> set[str]:
    """Names under `of` in the tree of a step."""
    import orbax.checkpoint as ocp

    _quieten()
    metadata: Any = ocp.StandardCheckpointer().metadata(directory.resolve() / str(step) / "default")
    return set(metadata.item_metadata.tree[of])


def restore(directory: Path, step: int, template: Any) -> Any:
    """Reads a step back onto the present devices, however many there were when it was written.

    Args:
      template: pytree of arrays or `jax.ShapeDtypeStruct` with the structure that was saved, or a dict with some of its
        branches. Leaves are restored in its shardings, and replicated on every device where it has none.

    Raises:
      UserError: if the step does not fit the template.
    """
    import orbax.checkpoint as ocp

    def describe(leaf):
        return jax.ShapeDtypeStruct(
            np.shape(leaf), leaf.dtype, sharding=getattr(leaf, "sharding", None) or parallel.replicated()
        )

    target = jax.tree.map(describe, template)
    arguments = ocp.args.PyTreeRestore(
        item=target,
        restore_args=jax.tree.map(
            lambda leaf: ocp.ArrayRestoreArgs(
                sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype, strict=True
            ),
            target,
        ),
        partial_restore=True,
    )
    with _manager(directory) as manager:
        try:
            return manager.restore(step, args=arguments)
        except (ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0][:200]
            raise UserError(f"checkpoint {directory / str(step)} does not fit this config: {reason}") from error
