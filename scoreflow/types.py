"""Types that signatures share: parameters and keys, and numbers with the condition that they must meet.

A function or a NamedTuple that can be chosen or set from a config says in its signature what each setting is called,
what its default is and which values are allowed, and in its docstring what the setting means:

    def vp_constant(beta_min: Positive = 0.1, beta_max: Positive = 20.0) -> VP: ...

`Positive` is a plain `float` for callers and type checkers. `settings` reads the condition inside it, and
checks a config before anything is built. The functions themselves also run on traced values, and check little.
"""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

Params = Any
"""A pytree of parameters: nested dicts of arrays, as Flax makes them."""

Key = jax.Array
"""A typed PRNG key (`jax.random.key`), or one for each example, [B]."""


class Conditioning(NamedTuple):
    """What a network is told of each example of a batch that is augmented.

    Attributes:
      label: class labels [B] int32; None where the network knows no classes.
      augment: what was done to the example, [B, n], see `augment`; zeros mean nothing.
    """

    label: jax.Array | None
    augment: jax.Array


Cond = jax.Array | Conditioning | None
"""Class labels [B] int32, or those and labels of augmentation; None for neither."""


class Check(NamedTuple):
    """What a setting's value must be: its type, a condition, and the condition in words.

    A config may have `instead`, if there is such a word, where the value is still to be measured.
    """

    kind: type
    holds: Callable[[Any], bool]
    words: str
    instead: str = ""

    def __repr__(self) -> str:
        """What `help` shows in a signature."""
        return f"Check({self.words!r})"

    def allows(self, value: Any) -> bool:
        """Whether a value has the type and meets the condition; an integer will do for a finite float."""
        if self.instead and value == self.instead:
            return True
        if self.kind is float:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return number and math.isfinite(value) and self.holds(value)
        boolean_for_number = self.kind is int and isinstance(value, bool)
        return isinstance(value, self.kind) and not boolean_for_number and self.holds(value)

    def parse(self, text: str) -> Any:
        """The value that a word of the command line stands for: (10, 50), 10,50 and bare words are tuples, too.

        Raises:
          ValueError: if it is no value of the type.
        """
        text = text.strip()
        if self.instead and text == self.instead:
            return text
        if self.kind is bool:
            values = {"true": True, "false": False, "1": True, "0": False}
            if text.lower() not in values:
                raise ValueError(text)
            return values[text.lower()]
        if self.kind is tuple:
            return tuple(_number_or_word(word) for word in text.strip("()[]").split(",") if word.strip())
        if self.kind is int and "e" in text.lower() and float(text).is_integer():
            return int(float(text))
        return self.kind(text)


def _number_or_word(word: str) -> int | float | str:
    word = word.strip().strip("\"'")
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def one_of(choices: tuple[Any, ...]) -> Check:
    """One of the given words, or of the given numbers."""
    return Check(
        type(choices[0]),
        lambda value: value in choices,
        "one of " + ", ".join(str(choice) or "''" for choice in choices),
    )


class OneOf(NamedTuple):
    """A setting that is given by name: name -> the value that the function receives."""

    table: Mapping[str, Any]


def _positive_ints(value: tuple) -> bool:
    return all(isinstance(x, int) and not isinstance(x, bool) and x > 0 for x in value)


def _positive_floats(value: tuple) -> bool:
    return all(isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < float("inf") for x in value)


_INTS, _FLOATS = "a tuple of whole numbers above 0", "a tuple of numbers above 0"

Positive = Annotated[float, Check(float, lambda v: v > 0, "a number above 0")]
PositiveOrAuto = Annotated[float, Check(float, lambda v: v > 0, "a number above 0, or auto", "auto")]
NonNegative = Annotated[float, Check(float, lambda v: v >= 0, "a number, 0 or above")]
Number = Annotated[float, Check(float, lambda v: True, "a finite number")]
Fraction = Annotated[float, Check(float, lambda v: 0 <= v < 1, "a number from 0 to below 1")]
Probability = Annotated[float, Check(float, lambda v: 0 <= v <= 1, "a number from 0 to 1")]
Share = Annotated[float, Check(float, lambda v: 0 < v <= 1, "a number above 0, at most 1")]
Inside = Annotated[float, Check(float, lambda v: 0 < v < 1, "a number between 0 and 1")]
Seed = Annotated[int, Check(int, lambda v: 0 <= v < 2**32, "a whole number from 0 to below 2**32")]
Steps = Annotated[int, Check(int, lambda v: 1 <= v <= 10**6, "a whole number from 1 to a million")]
Count = Annotated[int, Check(int, lambda v: v >= 1, "a whole number, 1 or above")]
CountOrZero = Annotated[int, Check(int, lambda v: v >= 0, "a whole number, 0 or above")]
Index = Annotated[int, Check(int, lambda v: v >= -1, "a whole number, 0 or above, or -1")]
Flag = Annotated[bool, Check(bool, lambda v: True, "True or False")]
Text = Annotated[str, Check(str, lambda v: True, "text")]
Counts = Annotated[tuple[int, ...], Check(tuple, lambda v: len(v) > 0 and _positive_ints(v), _INTS)]
CountsOrNone = Annotated[tuple[int, ...], Check(tuple, _positive_ints, f"{_INTS}, or ()")]
Numbers = Annotated[tuple[float, ...], Check(tuple, lambda v: len(v) > 0 and _positive_floats(v), _FLOATS)]
NumbersOrNone = Annotated[tuple[float, ...], Check(tuple, _positive_floats, f"{_FLOATS}, or ()")]
Dtype = Annotated[Any, OneOf({"float32": None, "bfloat16": jnp.bfloat16})]
