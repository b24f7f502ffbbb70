"""The notebooks are stored with their pictures, and run from beginning to end; what they print is known."""

import ast
import base64
import inspect
import json
import operator
import re
from pathlib import Path

import jax
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import scoreflow
from tests import tiny

FOLDER = tiny.ROOT / "notebooks"
NAMES = ("1_plane", "2_digits", "3_choosing")


def stored(name: str) -> nbformat.NotebookNode:
    """A notebook as it is in the repository."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def printed(notebook: nbformat.NotebookNode) -> str:
    """What its cells print."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def number_after(words: str, text: str) -> float:
    """The first number after some words."""
    match = re.search(rf"^{words}\D*?(-?\d[\d.]*)", text, re.MULTILINE)
    assert match, words
    return float(match[1])


def test_every_notebook_is_tested():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_stored_outputs_have_pictures_and_no_noise(name):
    notebook, pictures = stored(name), 0
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "executed once, in order"
    for output in (output for cell in code for output in cell.outputs):
        assert output.output_type in ("stream", "display_data"), output.output_type
        assert output.get("name", "stdout") == "stdout", output.text  # neither warnings nor progress bars
        if png := output.get("data", {}).get("image/png"):
            assert base64.b64decode(png).startswith(b"\x89PNG")
            pictures += 1
            output.data["image/png"] = ""
    assert pictures >= 2
    assert not re.search(r"/(home|root|tmp|usr|opt|Users|work)/|[A-Z]:\\\\\w", json.dumps(notebook))
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 720_000


def test_stored_numbers_agree_with_what_is_known():
    plane, digits, choosing = (printed(stored(name)) for name in NAMES)
    assert abs(number_after("integral", plane) - 1) < 0.01  # a density
    exact, model, gaussian = (number_after(words, plane) for words in ("exact density", "score model", "Gaussian"))
    assert exact + 0.05 > model > gaussian + 0.5
    assert number_after("score model", digits) < number_after("Gaussian", digits) - 0.2 < np.log2(17)
    bounds = [number_after(rf"{re.escape(words)} +least bound", choosing) for words in ("N(0, σ²)", "8 Gaussians")]
    assert number_after("exact density", choosing) - 0.05 < bounds[1] < bounds[0] + 0.02


@pytest.mark.parametrize("name", NAMES)
def test_calls_of_the_library_have_arguments_that_it_takes(name):
    """So that a change of a name shows before the notebooks are run."""
    seen = 0
    for cell in stored(name).cells:
        for call in ast.walk(ast.parse(cell.source)) if cell.cell_type == "code" else ():
            path = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
            if not isinstance(call, ast.Call) or not re.fullmatch(r"scoreflow(\.\w+)+", path):
                continue
            function = operator.attrgetter(path.removeprefix("scoreflow."))(scoreflow)
            inspect.signature(function).bind_partial(**{each.arg: None for each in call.keywords if each.arg})
            seen += 1
    assert seen > 2


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Kernels do not divide the cores among several devices, as other tests do."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)


def executed(name: str, folder: Path, instead: dict[str, str], wanted: str) -> dict:
    """Executes a notebook with some of its words replaced; the value of an expression at its end."""
    notebook = stored(name)
    for word, other in instead.items():
        assert sum(cell.source.count(word) for cell in notebook.cells if cell.cell_type == "code") == 1, word
        for cell in notebook.cells:
            cell.source = cell.source.replace(word, other)
    last = f"import json\n\nprint('RESULT', json.dumps({wanted}, default=lambda each: np.asarray(each).tolist()))"
    notebook.cells.append(nbformat.v4.new_code_cell(last))
    (folder / "notebooks").mkdir()
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder / "notebooks")}})
    text = printed(client.execute())
    return json.loads(text.partition("RESULT ")[2].splitlines()[0])


@pytest.mark.slow
def test_the_plane_has_a_density_that_is_better_than_a_gaussian(tmp_path):
    instead = {"steps = 3000": "steps = 1500", "resolution = 110": "resolution = 40", "[:1000]\nlogps": "[:300]\nlogps"}
    wanted = "{'integral': integral, 'logp': {name: each.mean() for name, each in logps.items()}}"
    result = executed("1_plane", tmp_path, instead, wanted)
    assert abs(result["integral"] - 1) < 0.05
    assert result["logp"]["exact density"] + 0.1 > result["logp"]["score model"] > result["logp"]["Gaussian"] + 0.1


@pytest.mark.slow
def test_digits_are_filled_in_and_decoded_from_their_codes(tmp_path):
    """With a network of a few steps: what is known stays, codes lead back, and paths end where they should."""
    with jax.numpy_rank_promotion("allow"):  # as users have it
        tiny.trained(tmp_path / "runs" / "vp_digits")
    instead = {
        "draws = 2": "draws = 1",
        "digits.test.x, digits.test.label": "digits.test.x[:100], digits.test.label[:100]",
    }
    wanted = (
        "{'known': np.abs(filled - known)[:, :, :4].max(), 'apart': apart, 'bits': bits_test, 'normal': bits_normal,"
        " 'ends': [np.abs(np.asarray(rows[1][0]) - np.asarray(rows[0][0])).max(),"
        " np.abs(np.asarray(rows[-1][-1]) - np.asarray(rows[-2][-1])).max()]}"
    )
    result = executed("2_digits", tmp_path, instead, wanted)
    assert result["known"] < 0.02 and result["apart"] < 0.05 and max(result["ends"]) < 0.3
    assert len(result["bits"]) == 100 and np.isfinite(result["bits"]).all()
    assert abs(np.mean(result["normal"]) - 2.97) < 0.1  # with all test digits and two draws


@pytest.mark.slow
def test_simulations_agree_with_the_plan_and_bounds_are_above_the_entropy(tmp_path):
    instead = {
        "train_steps = 2000": "train_steps = 300",
        "count, t_min = 10_000": "count, t_min = 5_000",
        "num_times=300, repeats=8": "num_times=50, repeats=4",
        "steps = (5, 10, 20, 40, 80, 160)": "steps = (5, 20, 80)",
    }
    wanted = (
        "{'pairs': [[simulated[key], predicted[key]] for key in predicted], 'floor': floor, 'best': list(best.values()),"
        " 'bounds': [each.mean(0).min() for each in bounds.values()], 'entropy': entropy.mean(),"
        " 'error': np.std(entropy - next(iter(bounds.values()))[:, -1]) / len(entropy) ** 0.5}"
    )
    result = executed("3_choosing", tmp_path, instead, wanted)
    for simulated, predicted in result["pairs"]:
        assert abs(simulated - np.hypot(predicted, result["floor"])) < 0.02 + 0.03 * predicted
    assert min(result["bounds"]) > result["entropy"] - 4 * result["error"]
    assert result["best"][2] < result["best"][0]  # a better start, a shorter path
