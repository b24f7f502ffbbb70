"""A catalogue: rows receive their settings, and of what is offered the arguments they name."""

from typing import Annotated

import pytest

from scoreflow.settings import Catalogue
from scoreflow.types import Count, OneOf, Positive


def noisy(process, length: Positive = 1.0, *, encode=None, **ignored):
    """A row.

    Args:
      process: offered.
      length: A number.
      encode: offered.
      ignored: what no signature names.
    """
    return process, length, encode, ignored


def plain(x, *, count: Count = 2, rule: Annotated[str, OneOf({"add": "+", "take": "-"})] = "+"):
    """Another.

    Args:
      x: an array, given later.
      count: A whole number.
      rule: A word.
    """
    return x, count, rule


def bare(x):
    """A row without settings."""
    return x


FINISHED = object()
ROWS = {"none": None, "noisy": noisy, "plain": plain, "bare": bare, "finished": FINISHED}


class Section(dict):
    """Settings as attributes and by name, as a config has them."""

    __getattr__ = dict.__getitem__


def test_a_called_row_receives_its_settings_and_what_it_names_of_what_is_offered():
    """By name alone: neither the order of what is offered nor anything it does not name reaches it."""
    called = Catalogue(ROWS, True, "none", "Rows.")
    section = Section(name="noisy", length=3.0, other=4.0)
    offered = {"weight": "w", "encode": "e", "process": "p", "ignored_too": 1}
    assert called.build(section, **offered) == ("p", 3.0, "e", {})
    assert called.build(section, **dict(reversed(offered.items()))) == ("p", 3.0, "e", {})
    with pytest.raises(TypeError, match="process"):
        called.build(section, encode="e")


def test_a_bound_row_waits_for_its_arrays():
    bound = Catalogue(ROWS, False, "none", "Rows.")
    rule = bound.build(Section(name="plain", count=5, rule="take"), process="p")
    assert rule(7) == (7, 5, "-") and rule.keywords == {"count": 5, "rule": "-"}
    assert bound.build(Section(name="bare"), process="p") is bare


def test_a_setting_is_the_config_s_and_never_what_is_offered():
    section = Section(name="plain", count=5, rule="add")
    assert Catalogue(ROWS, False, "none", "Rows.").build(section, count=9, rule="*")(1) == (1, 5, "+")


@pytest.mark.parametrize("called", [True, False])
def test_a_row_that_is_no_function_is_what_is_built(called):
    catalogue = Catalogue(ROWS, called, "none", "Rows.")
    assert catalogue.build(Section(name="none"), process="p") is None
    assert catalogue.build(Section(name="finished"), process="p") is FINISHED
    assert catalogue.settings("none") == catalogue.settings("finished") == catalogue.settings("bare") == {}


def test_settings_of_a_section_are_those_of_the_row_with_what_is_shared_and_extra():
    """What is shared is a setting of every row, what is extra of its own; a row receives those of its signature alone."""
    catalogue = Catalogue(ROWS, False, "none", "Rows.", shared=(plain,), extra={"bare": (noisy,)})
    assert catalogue.settings("none").keys() == {"count", "rule"}
    assert catalogue.settings("bare").keys() == {"length", "count", "rule"}
    assert catalogue.build(Section(name="bare", length=1.0, count=2, rule="add")) is bare
    assert catalogue.settings("plain")["rule"].default == "add"  # as a config writes it
