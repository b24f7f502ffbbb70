"""Errors the user can fix. Their message is one line: what is wrong, with which value, and what to do."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A wrong argument, a missing file, a folder of another run: `main.py` prints it and exits with 2."""


class RunError(RuntimeError):
    """A run that cannot go on (a loss that is not finite, a full disk): `main.py` prints it and exits with 1."""


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The names that a wrong dotted name may have meant: by its letters, its section, or as an abbreviation."""
    section, _, key = name.rpartition(".")

    def likeness(other: str) -> float:
        group, _, word = other.rpartition(".")
        initials = "".join(piece[0] for piece in word.split("_") if piece)
        bonus = 0.5 * (key == initials) + 0.2 * (group == section) + 0.3 * (key in word or word in key)
        return difflib.SequenceMatcher(None, key, word).ratio() + bonus

    return sorted(names, key=likeness, reverse=True)[:count]


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or else the name of its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
