"""Settings of any function, read from their one source, its signature and docstring; and catalogues of such functions.

A *source* is a function, a Linen module or a NamedTuple. Those of its parameters whose annotation carries a `Check` or
a `OneOf` (`scoreflow.types`), or is a `Literal`, are settings; the code that calls it gives all others.
"""

import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from scoreflow.runs.errors import UserError
from scoreflow.types import Check, OneOf, one_of


class Setting(NamedTuple):
    """One setting.

    Attributes:
      default: the value it has unless it is set, as a config writes it.
      check: what its value must be.
      meaning: one sentence, from the docstring of its source.
      table: where it is given by name, name -> the value that the source receives; else None.
    """

    default: Any
    check: Check
    meaning: str
    table: Mapping[str, Any] | None = None

    def checked(self, name: str, value: Any) -> Any:
        """The value, a list as a tuple.

        Raises:
          UserError: naming the setting, its value and what is allowed.
        """
        value = tuple(value) if isinstance(value, list) else value
        if not self.check.allows(value):
            finite = " that is finite" if isinstance(value, float) and not math.isfinite(value) else ""
            raise UserError(f"{name} = {value!r} must be {self.check.words}{finite}")
        return value

    def value(self, given: Any) -> Any:
        """What the source receives for a value of the config."""
        return given if self.table is None else self.table[given]


def _name_of(value: Any, table: Mapping[str, Any]) -> str:
    same = lambda entry: entry is value or (type(entry) is type(value) and entry == value)
    return next(name for name, entry in table.items() if same(entry))


def _meanings(source: Any) -> dict[str, str]:
    """name -> sentence, from the Args or Attributes of a Google-style docstring; of a class, with those it inherits."""
    docs = (
        [inspect.cleandoc(cls.__doc__ or "") for cls in reversed(inspect.getmro(source))]
        if inspect.isclass(source)
        else [inspect.getdoc(source) or ""]
    )
    blocks = [block for doc in docs for block in re.split(r"\n *(?:Args|Attributes):\n", doc)[1:]]
    meanings: dict[str, str] = {}
    for block in blocks:
        names: list[str] = []
        for line in block.splitlines():
            if not line.strip() or not line.startswith(" "):
                break
            if entry := re.match(r" {2}([\w`, ]+): (.*)", line):
                names = [name.strip(" `") for name in entry.group(1).split(",")]
                meanings |= dict.fromkeys(names, entry.group(2))
            else:
                meanings |= {name: f"{meanings[name]} {line.strip()}" for name in names}
    return {name: text[:1].upper() + text[1:].rstrip(".") + "." for name, text in meanings.items()}


@functools.cache
def settings(*sources: Any) -> dict[str, Setting]:
    """The settings that sources state in their signatures, by name."""
    out: dict[str, Setting] = {}
    for source in sources:
        meanings = _meanings(source)
        for name, parameter in inspect.signature(source).parameters.items():
            annotation, default = parameter.annotation, parameter.default
            if get_origin(annotation) is Literal:
                out[name] = Setting(default, one_of(get_args(annotation)), meanings.get(name, ""))
            for mark in annotation.__metadata__ if get_origin(annotation) is Annotated else ():
                if isinstance(mark, Check):
                    out[name] = Setting(default, mark, meanings.get(name, ""))
                elif isinstance(mark, OneOf):
                    check = one_of(tuple(mark.table))
                    out[name] = Setting(_name_of(default, mark.table), check, meanings.get(name, ""), mark.table)
    return out


class Catalogue(NamedTuple):
    """What a section of the config can choose by name.

    Attributes:
      rows: name -> source; None for nothing, or a finished value that has no settings.
      called: whether a row is called with its settings; otherwise they are bound to it, and arrays come later.
      default: the row that is chosen unless another is named.
      meaning: what is chosen.
      shared: sources whose settings the section has with every row.
      extra: row -> further sources whose settings the section has with that row.
    """

    rows: Mapping[str, Any]
    called: bool
    default: str
    meaning: str
    shared: tuple[Any, ...] = ()
    extra: Mapping[str, tuple[Any, ...]] = {}

    def settings(self, name: str) -> dict[str, Setting]:
        """The settings of a row, without `name` itself."""
        row = self.rows[name]
        own = (row,) if callable(row) else ()
        return settings(*own, *self.extra.get(name, ()), *self.shared)

    def build(self, section: Any, **offered: Any) -> Any:
        """What a section chooses; the row receives those of the `offered` arguments that its signature names."""
        row = self.rows[section.name]
        if not callable(row):
            return row
        wanted = {key: value for key, value in offered.items() if key in inspect.signature(row).parameters}
        arguments = wanted | values(row, section)
        if self.called:
            return row(**arguments)
        return functools.partial(row, **arguments) if arguments else row


def values(source: Callable, section: Any) -> dict[str, Any]:
    """The settings of a source as it receives them, from a section of the config."""
    return {name: setting.value(section[name]) for name, setting in settings(source).items()}
