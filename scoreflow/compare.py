"""`--mode=compare`: what several runs have written, next to each other, as a table, Markdown, JSON and one HTML page.

It reads what runs keep and measures nothing again; only sample grids may be drawn. Runs may still be training.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scoreflow.comparison import forms, grids, read
from scoreflow.comparison.contents import Comparison, compared
from scoreflow.comparison.grids import Opener
from scoreflow.runs import files, report, workdir
from scoreflow.runs.errors import UserError

_FILES = ("compare.md", "compare.json", "compare.html")


def compare(
    folders: Sequence[Path],
    out: Path,
    *,
    complete: Callable[[dict[str, Any]], dict[str, Any]] = lambda settings: settings,
    open_run: Opener | None = None,
) -> Comparison:
    """Compares runs; prints a table and writes `compare.md`, `compare.json` and `compare.html`.

    Args:
      folders: of the runs.
      out: the folder to write into.
      complete: settings of a run by dotted name -> the same with defaults.
      open_run: folder -> the experiment of its run, to draw samples; None draws none.
    """
    said: list[str] = []

    def warn(message: str) -> None:
        report.warn(message)
        said.append(message)

    runs = [read.read(folder, name, complete, warn) for folder, name in zip(folders, read.names(folders))]
    shown = grids.side_by_side(runs, open_run, warn)
    comparison = compared(runs)
    report.say(_whole(forms.in_terminal(comparison)))
    comparison = comparison._replace(notes=[*comparison.notes, *said])
    files.write_text(out / "compare.md", _whole(forms.in_markdown(comparison)))
    files.write_text(out / "compare.json", json.dumps(forms.in_json(comparison), indent=2, allow_nan=False) + "\n")
    files.write_text(out / "compare.html", _whole(forms.in_html(comparison, shown)))
    report.say(f"\nwrote {out / 'compare.html'}, a page for any browser, and beside it compare.md and compare.json")
    return comparison


def _whole(text: str) -> str:
    """The text without halves of characters, as in names that are not in UTF-8."""
    return text.encode("utf-8", "replace").decode()


def place(folders: Sequence[Path], given: Path | None) -> Path:
    """The folder to write into: the one that is given, or `compare` next to the runs.

    `compare-2` and so on hold comparisons of other runs. In a folder that is given, the comparison of other runs is
    replaced, and a line says so; what this mode has not written is not.

    Raises:
      UserError: if a run is in the folder that is given, or files that this mode has not written; or if the runs are on
        different disks, and none is given.
    """
    made = {"runs": [str(path.resolve()) for path in folders]}
    if given is None:
        try:
            parent = Path(os.path.commonpath([path.resolve().parent for path in folders]))
        except ValueError:  # on different drives
            parent = Path(folders[0].resolve().anchor)
        if parent == Path(parent.anchor):
            raise UserError("--mode=compare: these runs have no folder in common; give --workdir to write into")
        here = Path.cwd()
        shown = parent.relative_to(here) if parent.is_relative_to(here) else parent
        return workdir.numbered(made, shown, "compare", "made.json")
    if given.is_file():
        raise UserError(f"--workdir={given} is a file; it must be a folder, or a new name")
    if read.is_run(given):
        raise UserError(f"--workdir={given} holds a run; choose another folder for the comparison")
    before = read.json_of(given / "made.json", lambda _: None).get("runs")
    if there := [name for name in _FILES if (given / name).exists()]:
        if not isinstance(before, list):
            raise UserError(f"--workdir={given} has a {there[0]} of another origin; choose another folder")
        if before != made["runs"]:
            report.say(f"replacing the comparison of {', '.join(Path(str(path)).name for path in before)} in {given}")
    report.write_json(given / "made.json", made)
    return given
