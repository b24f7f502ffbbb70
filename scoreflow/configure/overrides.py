"""A complete config from a config file and a command line: names first, then defaults, then every other setting."""

import contextlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from scoreflow import own
from scoreflow.configure.catalogue import CATALOGUES, SECTIONS
from scoreflow.runs import workdir
from scoreflow.runs.errors import UserError, nearest
from scoreflow.runs.renamed import renamed_section, translate
from scoreflow.runs.workdir import flatten
from scoreflow.settings import Setting, settings

Config = Any
"""A complete config: a locked ConfigDict, whose attributes have no types."""

_NAMED = {name: Setting(row.default, row.names, row.meaning) for name, row in CATALOGUES.items()}


class Plain(ml_collections.ConfigDict):
    """A section of settings; values of any type are taken, and checked when the config is complete."""

    def __setitem__(self, key: str, value: Any) -> None:
        with self.ignore_type():
            super().__setitem__(key, value)


class Section(Plain):
    """A section in which something is chosen by name: another name brings the defaults of that choice."""

    def __init__(self, section: str) -> None:
        super().__init__()
        object.__setattr__(self, "_section", section)
        self.name = CATALOGUES[section].default

    def __setitem__(self, key: str, value: Any) -> None:
        section = object.__getattribute__(self, "_section")
        catalogue = CATALOGUES[section]
        if key == "name" and catalogue.names.allows(value):
            if value != self.get("name"):
                with self.unlocked():
                    for old in list(self):
                        super().__delitem__(old)
                    super().__setitem__("name", value)
                    for setting, row in catalogue.settings(value).items():
                        super().__setitem__(setting, row.default)
        elif key != "name" and key not in self:  # also where it goes with another choice, so that none is lost
            ((name, value),) = translate({f"{section}.{key}": value}).items()
            if name.partition(".")[2] not in self:
                names = {other: row.default for other, row in CATALOGUES.items()} | {section: self.name}
                raise unknown(name, names, known(names))
            super().__setitem__(name.partition(".")[2], value)
        else:
            super().__setitem__(key, value)

    def update(self, *other: Any, **settings: Any) -> None:
        """As a dict's; a name is applied first wherever it stands."""
        for rows in (*map(dict, other), settings):
            super().update({key: rows[key] for key in sorted(rows, key=lambda key: key != "name")})

    def copy_and_resolve_references(self, visit_map: Any = None) -> ml_collections.ConfigDict:
        """A plain copy."""
        return ml_collections.ConfigDict(self.to_dict())

    __deepcopy__ = copy_and_resolve_references


class Defaults(Plain):
    """All sections. A section may be set as a whole, from a dict, and by the name that it had before."""

    def __getattr__(self, attribute: str) -> Any:
        name = renamed_section(attribute)
        if not attribute.startswith("_") and name not in self:
            sections = [other for other, value in self.items() if isinstance(value, ml_collections.ConfigDict)]
            raise UserError(f"{attribute} is no section; the nearest are {', '.join(nearest(name, sections))}")
        return super().__getattr__(name)

    def __setitem__(self, key: str, value: Any) -> None:
        key = renamed_section(key)
        if key not in self or not isinstance(self[key], ml_collections.ConfigDict):
            super().__setitem__(key, value)
        elif isinstance(value, Mapping | ml_collections.ConfigDict):
            section: Any = self[key]
            section.update(value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value)
        else:
            raise _no_section(key, value)


def defaults() -> ml_collections.ConfigDict:
    """Every setting at its default; config files start from it and state what differs."""
    config = Defaults()
    for section, sources in SECTIONS.items():
        rows = {name: setting.default for name, setting in settings(*sources).items()}
        config.update(rows if not section else {section: Plain(rows)})
    for section in CATALOGUES:
        config[section] = Section(section)
    return config


def _no_section(name: str, value: Any) -> UserError:
    advice = (
        f"set {name}.name or another setting of it" if name in CATALOGUES else f"set one of its settings, {name}..."
    )
    return UserError(f"{name} = {value!r}: {name} is a section; {advice}")


def known(names: Mapping[str, str]) -> dict[str, Setting]:
    """Every setting by its dotted name, given what each section with a catalogue chooses."""
    out: dict[str, Setting] = {}
    for section in ("", *CATALOGUES, *(name for name in SECTIONS if name)):
        prefix = f"{section}." if section else ""
        rows: dict[str, Setting] = {}
        if section in CATALOGUES:
            rows = {"name": _NAMED[section], **CATALOGUES[section].settings(names[section])}
        rows |= settings(*SECTIONS.get(section, ()))
        out |= {prefix + name: row for name, row in rows.items()}
    return out


def unknown(name: str, names: Mapping[str, str], rows: Mapping[str, Setting]) -> UserError:
    """The error of a setting that does not exist, or does not go with what its section chooses."""
    section, _, key = name.partition(".")
    if section in CATALOGUES and key:
        catalogue, row = CATALOGUES[section], names[section]
        owners = [other for other in catalogue.rows if key in catalogue.settings(other)]
        if owners:
            verb = "have" if owners[1:] else "has"
            return UserError(f'{name}: {row} has no setting "{key}"; {", ".join(owners)} {verb}')
    if name in ("workdir", "mode", "config"):
        return UserError(f"{name} is not a setting but a flag of its own: --{name}=...")
    return UserError(f"{name} is not a known setting; the nearest are {', '.join(nearest(name, rows))}")


def _chosen(file: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, str]:
    names = {}
    for section, setting in _NAMED.items():
        key = f"{section}.name"
        names[section] = setting.checked(key, overrides.get(key, file.get(key, setting.default)))
    return names


def flat_defaults(config: Config) -> dict[str, Any]:
    """The default of every setting that a complete config has, by dotted name."""
    names = {section: config[section].name for section in CATALOGUES}
    return {name: row.default for name, row in known(names).items()}


def of_run(
    stored: Mapping[str, Any], overrides: Mapping[str, str] | None = None, file: ml_collections.ConfigDict | None = None
) -> tuple[Config, list[str]]:
    """The complete config with which a finished run is used.

    Args:
      stored: the run's settings by dotted name, as `workdir.stored_settings` gives them.
      overrides: dotted name -> word, from the command line.
      file: what a config file says: its settings of how a run is used replace the stored ones.

    Returns:
      the config, and where the file differs from the run in what was learned: "name = stored, not file's".

    Raises:
      UserError: as `resolve`.
    """
    moved = {name: own.absolute(word) for name, word in (overrides or {}).items() if own.is_own(word)}
    stored = {**stored, **moved}  # where the file of a part lies now
    rows = known(_chosen(stored, {}))
    said = flatten(resolve(file).to_dict()) if file is not None else {}
    use = {name: value for name, value in said.items() if name.startswith(workdir.USE)}
    learned = {name: tuple(v) if isinstance(v, list) else v for name, v in stored.items() if name in rows}
    apart = [
        f"{name} = {learned[name]!r}, not {value!r}"
        for name, value in said.items()
        if name not in use and name in learned and value not in (learned[name], "auto")  # which was measured
    ]
    kept = {name: value for name, value in learned.items() if not (use and name.startswith(workdir.USE))} | use
    tree: dict[str, Any] = {}
    for name, value in kept.items():
        section, _, key = name.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[key] = value
    return resolve(ml_collections.ConfigDict(tree), overrides), apart


def resolve(config: ml_collections.ConfigDict, overrides: Mapping[str, str] | None = None) -> Config:
    """A complete config: every setting of everything that is chosen, checked one by one.

    Args:
      config: what a config file says; settings it leaves out have their defaults.
      overrides: dotted name -> word, from the command line. Names are applied first: where one chooses something else
        than the file, the file's settings of the old choice go with it.

    Raises:
      UserError: naming a setting that is unknown, or its value and what is allowed.
    """
    file, said = translate(flatten(config.to_dict())), translate(dict(overrides or {}), once=True)
    sections = {*CATALOGUES, *SECTIONS} - {""}
    for name in sections & file.keys():
        raise UserError(f"{name} = {file[name]!r} must be a section of settings")
    for name, value in said.items():
        if renamed_section(name) in sections:
            raise _no_section(renamed_section(name), value)
    names = _chosen(file, said)
    for section, name in names.items():
        if file.get(f"{section}.name", name) != name:
            file = {key: value for key, value in file.items() if not key.startswith(f"{section}.")}
    rows = known(names)
    for name in (*file, *said):
        if name not in rows:
            raise unknown(name, names, rows)
    tree: dict[str, Any] = {}
    for name, row in rows.items():
        value = said[name] if name in said else file.get(name, row.default)
        if name in said and isinstance(value, str):
            with contextlib.suppress(ValueError):  # what cannot be read is refused as it is
                value = row.check.parse(value)
        section, _, key = name.rpartition(".")
        value = own.absolute(value) if own.is_own(value) and key == "name" else value
        (tree.setdefault(section, {}) if section else tree)[key] = row.checked(name, value)
    return ml_collections.ConfigDict(tree, type_safe=False).lock()
