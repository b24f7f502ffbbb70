"""Settings of any function, read from their one source, its signature and docstring; and catalogues of such functions.

A *source* is a function, a Linen module or a NamedTuple. Those of its parameters whose annotation carries a `Check` or
a `OneOf` (`scoreflow.types`), or is a `Literal`, are settings; the code that calls it gives all others. A source of the
user's own (`own`) also has those whose default is a number, a flag or text.
"""

import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from scoreflow import own
from scoreflow.runs.errors import UserError
from scoreflow.types import Check, Flag, Number, OneOf, Text, one_of

_WHOLE = Annotated[int, Check(int, lambda value: True, "a whole number")]
_NATURAL = {bool: Flag, int: _WHOLE, float: Number, str: Text}


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


def _signature(source: Any) -> inspect.Signature:
    try:
        return inspect.signature(source, eval_str=True)  # annotations may be text
    except (NameError, TypeError):
        return inspect.signature(source)


@functools.cache
def settings(*sources: Any, natural: bool = False) -> dict[str, Setting]:
    """The settings that sources state in their signatures, by name; `natural` takes plain defaults for settings, too.

    Raises:
      UserError: if a setting has no default.
    """
    out: dict[str, Setting] = {}
    for source in sources:
        meanings = _meanings(source)
        for name, parameter in _signature(source).parameters.items():
            annotation: Any = parameter.annotation
            default = parameter.default
            if natural and get_origin(annotation) not in (Annotated, Literal) and type(default) in _NATURAL:
                annotation = _NATURAL[float if annotation is float else type(default)]
            if natural and default is inspect.Parameter.empty and get_origin(annotation) in (Annotated, Literal):
                raise UserError(f"{source.__name__}: its setting {name} has no default")
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
      needs: settings that a row of the user's own must have.
    """

    rows: Mapping[str, Any]
    called: bool
    default: str
    meaning: str
    shared: tuple[Any, ...] = ()
    extra: Mapping[str, tuple[Any, ...]] = {}
    needs: tuple[str, ...] = ()

    @property
    def names(self) -> Check:
        """What may be chosen: a row, or a function of a file."""
        known = one_of(tuple(self.rows))
        words = f"{known.words}, or a function of your own, as my_file.py:name"
        return Check(str, lambda name: name in self.rows or own.is_own(name), words)

    def row(self, name: str) -> Any:
        """The source of a name.

        Raises:
          UserError: if there is no such function in the user's file, or it lacks a setting that it needs.
        """
        if name in self.rows or not own.is_own(name):
            return self.rows[name]
        row = own.load(name)
        for missing in set(self.needs) - set(settings(row, natural=True)):
            raise UserError(f"{name} needs an argument `{missing}` with a default, such as {missing}: float = 1.0")
        return row

    def _own(self, name: str) -> dict[str, Setting]:
        row = self.row(name)
        return settings(row, natural=name not in self.rows) if callable(row) else {}

    def settings(self, name: str) -> dict[str, Setting]:
        """The settings of a row, without `name` itself."""
        return self._own(name) | settings(*self.extra.get(name, ()), *self.shared)

    def build(self, section: Any, **offered: Any) -> Any:
        """What a section chooses; the row receives those of the `offered` arguments that its signature names."""
        row = self.row(section.name)
        if not callable(row):
            return row
        wanted = {key: value for key, value in offered.items() if key in inspect.signature(row).parameters}
        arguments = wanted | _given(self._own(section.name), section)
        if self.called:
            return row(**arguments)
        return functools.partial(row, **arguments) if arguments else row


def values(source: Callable, section: Any) -> dict[str, Any]:
    """The settings of a source as it receives them, from a section of the config."""
    return _given(settings(source), section)


def _given(rows: Mapping[str, Setting], section: Any) -> dict[str, Any]:
    return {name: setting.value(section[name]) for name, setting in rows.items()}
