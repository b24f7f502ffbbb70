"""A catalogue: what a section of a config can choose by name, with the settings that each choice brings."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from scoreflow.settings import Setting, settings


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
