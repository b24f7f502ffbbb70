"""What the README says exists, its commands are understood, and its example runs."""

import importlib
import importlib.util
import re
import shlex
import sys

import jax
import numpy as np
import pytest
from absl import flags

from scoreflow import cli, configure, score
from scoreflow.configure import catalogue
from scoreflow.data import load
from scoreflow.settings import settings
from scoreflow.theory import complexity
from tests import tiny

README = (tiny.ROOT / "README.md").read_text()
DOCS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(f"docs/{path.name}" for path in (tiny.ROOT / "docs").glob("*.md")),
]


def commands(page: str) -> list[str]:
    """The arguments of every `python main.py ...` or `scoreflow ...` on a page, without comments."""
    text = re.sub(r"\\\n\s*", "", (tiny.ROOT / page).read_text())
    lines = re.findall(r"(?:python main\.py|^ *scoreflow|`scoreflow) (--[^`\n]*)", text, re.MULTILINE)
    return [line.partition(" #")[0].strip(" &") for line in lines if "..." not in line]


COMMANDS = [
    (page, command)
    for page in [*DOCS, *sorted(f"configs/{path.name}" for path in (tiny.ROOT / "configs").glob("*.py"))]
    for command in dict.fromkeys(commands(page))
]


@pytest.mark.parametrize("page, command", COMMANDS)
def test_every_command_is_understood(page, command, monkeypatch):
    """Its config is found, its settings are settings of that config with possible values, and its mode exists."""
    monkeypatch.chdir(tiny.ROOT)
    rest, overrides = cli.take_settings(shlex.split(command))
    said = dict(re.fullmatch(r"--(\w+)=(.*)", word).groups() for word in rest)
    assert said.keys() <= {"config", "mode", "workdir", "runs"}
    assert said.get("mode", "train") in flags.FLAGS["mode"].parser.enum_values
    assert ("runs" in said) == (said.get("mode") == "compare")
    if "runs" in said:
        assert not overrides and "config" not in said
        return
    assert "config" in said or said["mode"] in ("eval", "sample")  # of a run, which has its settings
    configure.check(configure.resolve(cli.load_config(said.get("config", "vp_digits")), overrides))


def setting_names() -> set[str]:
    """Every setting of every choice, by its dotted name."""
    names = {f"{section}.{name}" for section, sources in catalogue.SECTIONS.items() for name in settings(*sources)}
    for section, choices in catalogue.CATALOGUES.items():
        names |= {f"{section}.name", *(f"{section}.{name}" for row in choices.rows for name in choices.settings(row))}
    return names


@pytest.mark.parametrize("page", DOCS)
def test_every_setting_in_prose_exists(page):
    """Between backticks: flags, which one config must understand, and names of settings, unless they are of code."""
    config, names = tiny.load(tiny.ROOT / "configs" / "vp_digits.py"), setting_names()
    for quoted in re.findall(r"`([^`\n]*)`", (tiny.ROOT / page).read_text()):
        words = quoted.split()
        if words and all(re.match(r"--config\.[\w.]+=[^<]", word) for word in words):
            configure.resolve(config, cli.take_settings(words)[1])
        if match := re.fullmatch(r"(\w+)\.(\w+)(?: = .*)?", quoted):
            section, name = match.groups()
            if section in {*catalogue.CATALOGUES, *catalogue.SECTIONS} and name not in ("py", "png", "json"):
                module = importlib.util.find_spec(f"scoreflow.{section}")
                is_code = module is not None and hasattr(importlib.import_module(module.name), name)
                assert f"{section}.{name}" in names or is_code, quoted


def test_readme_commands_cover_every_mode():
    modes = {mode for page, command in COMMANDS if page == "README.md" for mode in re.findall(r"--mode=(\w+)", command)}
    assert modes == set(flags.FLAGS["mode"].parser.enum_values)


CODE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_example_of_a_config_of_ones_own_loads_from_any_folder(tmp_path, monkeypatch):
    page = (tiny.ROOT / "docs" / "methods.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.setitem(sys.modules, "configs", sys.modules.get("configs"))
    config = configure.resolve(cli.load_config(str(tmp_path / "mine.py")))
    assert (config.model.name, config.model.channels, config.training.steps) == ("unet", 32, 4000)


def test_the_library_example_runs(capsys):
    """Bits/dim of draws of N(0, 1/4) in bins of 1/128, up to what lies outside [-1, 1]: its entropy and 7 bits."""
    (code,) = [code for code in CODE if "import scoreflow" in code]
    names: dict = {}
    with jax.numpy_rank_promotion("allow"):
        exec(compile(code, "README.md", "exec"), names)
    expected = 0.5 * np.log2(2 * np.pi * np.e / 4) + 7
    assert float(capsys.readouterr().out) == pytest.approx(expected, abs=0.1) and names["images"].shape == (16, 8, 8, 1)
    assert float(names["process"].alpha(2.0)) == pytest.approx(np.exp(-2.0), rel=1e-5)


@pytest.mark.parametrize("page", DOCS)
def test_every_file_it_names_exists(page):
    text, folder = (tiny.ROOT / page).read_text(), (tiny.ROOT / page).parent
    links = [folder / link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    named = [tiny.ROOT / config for config in re.findall(r"--config=(configs/\w+\.py)", text)]
    scripts = [tiny.ROOT / "experiments" / f"{name}.py" for name in re.findall(r"-m experiments\.(\w+)", text)]
    for path in {*links, *named, *scripts}:
        assert path.exists(), path


def chosen_from(pattern: str) -> list[str]:
    """The words between backticks in the second column of the rows of the methods table whose head matches."""
    table = (tiny.ROOT / "docs" / "methods.md").read_text()
    cells = [line.split("|")[2] for line in table.splitlines() if re.match(rf"\| {pattern} \|", line)]
    assert cells, pattern
    return re.findall(r"`([\w/]+)`", "".join(cells))


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


THEORY = {name for name in catalogue.PROCESSES if name.startswith("theory_")}
ROWS = {
    "forward SDE": catalogue.PROCESSES.keys() - THEORY,
    "the same processes in the theory's notation": THEORY,
    "network": catalogue.MODELS,
    "network predicts": score.PREDICTIONS,
    "loss": catalogue.LOSSES,
    "terminal distribution": catalogue.TERMINALS,
    "latent space": catalogue.LATENTS,
    "encoder and decoder": catalogue.VAES.keys() - {"none"},
    "decoder likelihood": catalogue.DECODERS.keys() - {"none"},
    "weight": catalogue.WEIGHTS,
    "training-time distribution": catalogue.TIMES,
    "(?:SDE|ODE) samplers": catalogue.SAMPLERS,
    "grids": catalogue.GRIDS,
    "data": load.NAMES,
}


@pytest.mark.parametrize("head", ROWS)
def test_every_choice_is_in_the_methods_table(head):
    """The words of a row are the names that a config takes; none is left out, and none is there twice."""
    assert sorted(chosen_from(head)) == sorted(ROWS[head])


def in_latex(order: str) -> str:
    r"""An order as the docs write it: d^(1/2) log(d/eps) becomes $d^{1/2} \log(d/\varepsilon)$."""
    words = re.sub(r"\^\(([^)]*)\)", r"^{\1}", order)
    return "$" + words.replace("eps", r"\varepsilon").replace("log", r"\log") + "$"


def test_the_orders_in_the_docs_are_those_of_the_code():
    text = (tiny.ROOT / "docs" / "theory.md").read_text()
    table = text[text.index("| $f$, $g$ |") : text.index("These are asymptotic")].strip().splitlines()[2:]
    arguments = {"ve_poly": (1.0,), "vp_poly": (3.0,)}
    expected = [
        [in_latex(str(order)) for order in row(*arguments.get(name, ()))] for name, row in complexity.TABLE.items()
    ]
    assert [[cell.strip() for cell in line.split("|")[2:-1]] for line in table] == expected
