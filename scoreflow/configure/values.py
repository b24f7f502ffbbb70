"""What a setting's value must be, and the form of a row in a table."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Check(NamedTuple):
    """A type, a condition and the condition in words."""

    kind: type
    holds: Callable[[Any], bool]
    words: str


def one_of(*choices: str) -> Check:
    """One of the given words."""
    return Check(str, lambda v: v in choices, "one of " + ", ".join(choices))


POSITIVE = Check(float, lambda v: v > 0, "a number above 0")
NON_NEGATIVE = Check(float, lambda v: v >= 0, "a number, 0 or above")
ANY_NUMBER = Check(float, lambda v: True, "a finite number")
FRACTION = Check(float, lambda v: 0 <= v < 1, "a number from 0 to below 1")
COUNT = Check(int, lambda v: v >= 1, "a whole number, 1 or above")
COUNT_OR_0 = Check(int, lambda v: v >= 0, "a whole number, 0 or above")
INDEX = Check(int, lambda v: v >= -1, "a whole number, 0 or above, or -1")
FLAG = Check(bool, lambda v: True, "True or False")
TEXT = Check(str, lambda v: True, "text")
COUNTS = Check(tuple, lambda v: all(isinstance(x, int) and x > 0 for x in v), "a tuple of whole numbers above 0")
NUMBERS = Check(
    tuple, lambda v: len(v) > 0 and all(isinstance(x, float) and x > 0 for x in v), "a tuple of numbers above 0"
)
DTYPE = one_of("float32", "bfloat16")


class Choice(NamedTuple):
    """A row of a table: what makes the part, and its parameters."""

    make: Callable
    parameters: dict[str, Check] = {}


def make(table: dict[str, Choice], section):
    """The part that a section of the config names, made with the section's other settings."""
    options = {key: value for key, value in section.items() if key != "name"}
    return table[section.name].make(**options)
