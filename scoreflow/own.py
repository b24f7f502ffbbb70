"""Parts of one's own by name: `my_sde.py:cubic` is the function `cubic` of a file, in the place of a library's name."""

import functools
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scoreflow.runs import files
from scoreflow.runs.errors import UserError, first_line

_loaded: set[Path] = set()
_NAME = re.compile(r"(.+\.py):(\w+)", re.DOTALL)


def is_own(name: Any) -> bool:
    """Whether a name is a file and a function in it."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def absolute(name: str) -> str:
    """The name with the whole path of its file, which goes on where a run is used from another folder."""
    path, function = _split(name)
    return f"{path.resolve()}:{function}"


def load(name: str) -> Callable:
    """The function.

    Raises:
      UserError: if there is no such file or function, or the file fails.
    """
    path, function = _split(name)
    if not path.is_file():
        raise UserError(f"{name}: there is no file {path}; if it was moved, set the part's name again")
    part = getattr(_module(path.resolve(), path.stat().st_mtime_ns), function, None)
    if not callable(part):
        raise UserError(f"{name}: {path.name} has no function {function}")
    return part


def blame(error: BaseException) -> str:
    """Where a part of one's own failed, in a line: its file, the line and the error; "" where none did."""
    own = {str(path) for path in _loaded}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in own]
    if not frames:
        return ""
    return f"{frames[-1].filename} (line {frames[-1].lineno}): {type(error).__name__}: {first_line(error)}"


def _split(name: str) -> tuple[Path, str]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(f"{name} is no file and function, such as my_sde.py:cubic")
    return files.local(match[1], "the file of a part"), match[2]


@functools.cache
def _module(path: Path, changed: int) -> Any:
    spec = importlib.util.spec_from_file_location(f"scoreflow_own_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} cannot be imported")
    _loaded.add(path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for it there
    sys.path.insert(0, str(path.parent))  # files of its folder can be imported
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a file of the user's raises
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path]
        where = f" (line {lines[-1]})" if lines else ""
        raise UserError(f"{path}{where}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    return module
