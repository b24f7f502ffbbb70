"""The examples of the API: every public name, and every public method of a public class, has one, and it runs."""

import doctest
import inspect

import jax
import pytest

import scoreflow
from tests import tiny

NAMES = [name for name in scoreflow.__all__ if name != "__version__"]
METHODS = [
    f"{name}.{method}"
    for name in NAMES
    if inspect.isclass(getattr(scoreflow, name))
    for method, value in inspect.getmembers(getattr(scoreflow, name))
    if not method.startswith("_") and (inspect.isfunction(value) or inspect.ismethod(value))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tiny run where the examples look for one."""
    folder = tmp_path_factory.mktemp("examples")
    with jax.numpy_rank_promotion("allow"):
        tiny.trained(folder / "runs" / "vp_digits")
    return folder


def documented(name: str):
    """The object of a dotted name."""
    value = scoreflow
    for part in name.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("name", [*NAMES, *METHODS])
@jax.numpy_rank_promotion("allow")
def test_the_example_of_a_public_name_runs(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    text = inspect.getdoc(documented(name)) or ""
    assert "Examples:\n" in text, f"scoreflow.{name} has no example"
    test = doctest.DocTestParser().get_doctest(text, {}, f"scoreflow.{name}", None, None)
    uses = [example.source for example in test.examples if name.split(".")[-1] in example.source]
    assert uses, f"the example of scoreflow.{name} does not use it"
    said: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert not said, "".join(said)
