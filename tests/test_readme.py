"""What the README says exists, and its example runs."""

import re

import pytest

from scoreflow.configure import sections, tables
from scoreflow.theory import complexity
from tests import tiny

README = (tiny.ROOT / "README.md").read_text()


def test_the_library_example_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    std, nfe = capsys.readouterr().out.split()
    assert abs(float(std) - 1) < 0.05 and int(nfe) == 21  # of N(0, I), denoised at t = 1e-3


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in (tiny.ROOT / "docs").glob("*.md"))])
def test_every_file_it_names_exists(page):
    text, folder = (tiny.ROOT / page).read_text(), (tiny.ROOT / page).parent
    links = [folder / link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    named = [tiny.ROOT / config for config in re.findall(r"--config=(configs/\w+\.py)", text)]
    scripts = [tiny.ROOT / "experiments" / f"{name}.py" for name in re.findall(r"-m experiments\.(\w+)", text)]
    for path in {*links, *named, *scripts}:
        assert path.exists(), path


def test_every_choice_is_in_its_table():
    """The words of the methods table are the names that a config takes, and none is left out."""
    theory = {name for name in tables.PROCESSES if name.startswith("theory_")}
    rows = {
        "forward SDE": dict.fromkeys(tables.PROCESSES.keys() - theory),
        "the same by the theory's letters": dict.fromkeys(theory),
        "network": tables.MODELS,
        "network predicts": tables.PREDICTIONS,
        "loss": tables.LOSSES,
        "terminal law": tables.TERMINALS,
        "latent space": tables.LATENTS,
        "encoder and decoder": tables.VAES.keys() - {"none"},
        "what a decoder says": tables.DECODERS.keys() - {"none"},
        "weight": tables.WEIGHTS,
        "law of t": tables.TIMES,
        "grids": tables.GRIDS,
    }
    for name, table in rows.items():
        (line,) = [line for line in README.splitlines() if line.startswith(f"| {name} |")]
        assert set(re.findall(r"`(\w+)`", line.split("|")[2])) == set(table)
    lines = [line.split("|")[2] for line in README.splitlines() if re.match(r"\| (SDE|ODE) samplers", line)]
    assert set(re.findall(r"`(\w+)`", "".join(lines))) == tables.SAMPLERS.keys() | tables.ADAPTIVE.keys()


def test_the_orders_in_the_docs_are_those_of_the_code():
    text = (tiny.ROOT / "docs" / "theory.md").read_text()
    table = text[text.index("| f, g |") : text.index("These are asymptotic")].strip().splitlines()[2:]
    arguments = {"ve_poly": (1.0,), "vp_poly": (3.0,)}
    expected = [[str(order) for order in row(*arguments.get(name, ()))] for name, row in complexity.TABLE.items()]
    assert [[cell.strip() for cell in line.split("|")[2:-1]] for line in table] == expected


def test_every_default_setting_is_one_that_a_config_takes_and_the_reverse():
    default = tiny.load(tiny.ROOT / "configs" / "default.py")
    for section, checks in sections.SECTIONS.items():
        assert set(default[section].keys()) == checks.keys()
