"""The page, the files and the command of a comparison."""

import html.parser
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from scoreflow import cli, compare, configure, evaluate, train
from scoreflow.comparison import forms, grids, measures, pairs, pictures, read, tables
from scoreflow.comparison.contents import compared
from scoreflow.data import fingerprints
from scoreflow.metrics import mean_estimate
from scoreflow.models import count_params
from scoreflow.runs import cost
from tests import tiny
from tests.test_compare import _allow_rank_promotion, made, opened, write_json  # noqa: F401  (a fixture)

# --- what is written --------------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """The addresses in a page, and the text of its cells by row."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.rows, self.tags, self.cell = [], [], set(), False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.cell = tag in ("td", "th") or (self.cell and tag in ("span", "button", "code"))
        self.rows += [[]] if tag == "tr" else []
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.addresses += [v for k, v in attributes if k in ("src", "href", "xlink:href", "action", "srcset", "data")]

    def handle_endtag(self, tag):
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.cell:
            self.rows[-1][-1] += data


@pytest.fixture
def page(tmp_path):
    """A comparison of runs with odd names, and its page."""
    shared = np.linspace(-1, 1, 20)
    names = ("<b>", '$x$ | _y_ & "z"')
    folders = [made(tmp_path / name, step_8=2.0 + 0.1 * i + shared) for i, name in enumerate(names)]
    write_json(folders[0] / "loss_by_log_snr.json", {"log_snr": [3, 0, -3], "train": [1, 0.5, 0], "test": [1, 0.6, 0]})
    comparison = compare.compare(folders, tmp_path / "out")
    return comparison, tmp_path / "out", Page((tmp_path / "out" / "compare.html").read_text())


def test_the_page_asks_nothing_of_a_network_and_escapes_names(page):
    _, out, parsed = page
    text = (out / "compare.html").read_text()
    assert "//" not in re.sub(r"data:image/png;base64,[\w+/=]+", "", text)  # no address, with a scheme or without one
    assert all(address.startswith(("data:", "#")) for address in parsed.addresses)
    assert "b" not in parsed.tags and "&lt;b&gt;" in text and "<b>" not in text
    assert not re.search(r"<link|@import|url\((?!#)", text) and 'name="viewport"' in text
    assert text.count("<svg") == 3  # the loss by log-SNR, bits/dim and Frechet distance: no log and no cost is kept


def test_tables_markdown_and_json_have_the_same_numbers(page):
    comparison, out, parsed = page
    content = json.loads((out / "compare.json").read_text())
    names = [run["name"] for run in content["runs"]]
    assert names == ["<b>", '$x$ | _y_ & "z"']
    by_title = {title: name for name, title in content["titles"].items()}
    head, *rows = parsed.rows[: 1 + len(names)]
    lines = (out / "compare.md").read_text().splitlines()
    for column, title in enumerate(head[1:], 1):
        values = [run["values"].get(by_title[title], {}) for run in content["runs"]]
        wanted = [tables.words(measures.Value(value.get("value"), value.get("stderr"))) for value in values]
        assert [row[column] for row in rows] == wanted
        assert f"| {title} | " + " | ".join(wanted) + " |" in [line.replace("**", "") for line in lines], title
    (pair,) = content["pairs"]
    assert (pair["run"], pair["other"], pair["examples"]) == (names[1], names[0], 20)
    assert pair["difference"] == pytest.approx(0.1) and pair["stderr"] == pytest.approx(0.0, abs=1e-9)


def test_the_printed_tables_fit_a_hundred_columns(tmp_path):
    """Four runs whose names are longer than their columns; of five, the fifth is below them."""
    long = ["a_run_with_a_very_long_name_indeed_" + "x" * i for i in range(5)]
    folders = [made(tmp_path / name, step_8=(2.0 + i, 3.0)) for i, name in enumerate(long)]
    for count in (4, 5):
        text = forms.in_terminal(compared(opened(*folders[:count])))
        numbers = text.partition("Settings that differ")[0]
        assert max(len(line) for line in numbers.splitlines() if "--workdir=" not in line) <= 100
        assert numbers.count("bits/dim ") == (1 if count == 4 else 2) and f"{1 + count}.00 ± 0.10" in numbers


def test_one_run_is_a_report(tmp_path):
    comparison = compare.compare([made(tmp_path / "a", step_8=(2.0, 3.0))], tmp_path / "out")
    text = (tmp_path / "out" / "compare.html").read_text()
    assert comparison.pairs == [] and comparison.budgets == [] and "<h1>The run a</h1>" in text
    assert "Settings that differ" not in text


# --- runs that were trained -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a run that was trained and evaluated, and a copy of it with another seed, whose bits/dim are higher
    by 0.01 for every second example; and the experiment."""
    folder = tmp_path_factory.mktemp("compare") / "runs"
    with jax.numpy_rank_promotion("allow"):
        config, experiment = tiny.trained(folder / "first")
        evaluation = configure.evaluation(config, folder.parent / "cache")
        only = {key: evaluation.evaluators[key] for key in ("likelihood", "samples")}
        evaluate.evaluate(experiment, evaluation._replace(evaluators=only), folder / "first")
    shutil.copytree(folder / "first", folder / "second")
    content = json.loads((folder / "second" / "config.json").read_text())
    content["config"]["seed"] = 5
    write_json(folder / "second" / "config.json", content)
    path = folder / "second" / "eval" / "8" / "examples.npz"
    with np.load(path) as kept:
        arrays = dict(kept)
    arrays["bits_per_dim"] += 0.01 * (arrays["index"] % 2)
    np.savez(path, **arrays)
    return folder, experiment


def test_an_evaluation_keeps_what_its_mean_is_of(runs):
    folder, experiment = runs
    metrics = json.loads((folder / "first" / "eval" / "8" / "metrics.json").read_text())["likelihood"]["bits_per_dim"]
    with np.load(folder / "first" / "eval" / "8" / "examples.npz") as kept:
        bits, index, content = (kept[name] for name in ("bits_per_dim", "index", "fingerprint"))
    assert metrics["value"] == pytest.approx(bits.mean()) and len(bits) == 12
    assert metrics["stderr"] == pytest.approx(bits.std(ddof=1) / np.sqrt(12))
    test = experiment.data.test.x
    np.testing.assert_array_equal(content, fingerprints(test)[index])
    assert len(set(fingerprints(test).tolist())) == len(np.unique(test.reshape(len(test), -1), axis=0))


def test_training_keeps_what_a_step_costs(runs):
    """Also where a run of an older version is opened again, which has not kept it: nothing is compiled then."""
    folder, experiment = runs
    kept = cost.read(folder / "first")
    shapes = jax.eval_shape(lambda: experiment.init(jax.random.key(0)))
    assert kept.parameters == count_params(shapes) and kept.memory > 16 * kept.parameters  # averages, two moments
    cost.path(folder / "first").unlink()
    config = tiny.digits(training__pictures=False)
    train.train(experiment, configure.train_options(config, experiment), folder / "first")
    again = cost.read(folder / "first")
    assert again.operations == pytest.approx(kept.operations) and again.memory is None
    cost.write(folder / "first", kept)


def test_the_command_compares_runs_from_end_to_end(runs, tmp_path):
    """The difference over 12 examples is 0.005, with the standard error of six times 0 and six times 0.01."""
    folder, _ = runs
    arguments = [sys.executable, str(tiny.ROOT / "main.py"), "--mode=compare", f"--runs={folder}", "--workdir=out"]
    environment = os.environ | {"PYTHONPATH": str(tiny.ROOT)}
    result = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "first has 0.0050 ± 0.0015" in result.stdout and "wrote out/compare.html" in result.stdout
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [run["name"] for run in content["runs"]] == ["first", "second"]
    (pair,) = content["pairs"]
    assert (pair["examples"], pair["difference"]) == (12, pytest.approx(0.005))
    assert pair["stderr"] == pytest.approx(0.005 / np.sqrt(11))
    assert content["settings"] == {"seed": {"first": 0, "second": 5}}
    assert {each["axis"] for each in content["budgets"]} == {"steps", "operations", "seconds"}
    text = (tmp_path / "out" / "compare.html").read_text()
    assert text.count("data:image/png;base64,") == 2
    assert "The same place in each picture begins with the same noise" in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--mode=compare"], "--runs is missing"),
        (["--mode=compare", "--runs=a", "--config.seed=1"], "no --config"),
        (["--runs=a", "--config=vp_digits"], "--runs goes with --mode=compare, not with --mode=train"),
        (["--mode=compare", "--runs=nowhere"], "--runs: nowhere is no folder"),
    ],
)
def test_wrong_flags_of_a_comparison_end_in_one_line_and_2(tmp_path, arguments, message):
    command = [sys.executable, str(tiny.ROOT / "main.py"), *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert result.returncode == 2 and message in line and "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_samples_begin_with_the_same_noise_whatever_the_seed(runs):
    """Twice the same, and the same of the copy of the run that has another seed."""
    folder, _ = runs
    paths = folder / "first", folder / "first", folder / "second"
    first, again, copy = (grids.samples(cli._open(path), path, 8)[1].x for path in paths)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, copy)
    assert len(np.unique(first.reshape(8, -1), axis=0)) == 8


def test_pictures_of_runs_with_the_same_seed_are_taken_as_they_are(tmp_path):
    """Other seeds begin with other noise, as do other numbers of samples in a picture."""
    config = {"seed": 0, "terminal": {"name": "prior"}, "sampling": {"num": 9}}
    a, b, c = (made(tmp_path / name, config=config | {"seed": seed}) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    for folder in (a, b, c):
        (folder / "samples").mkdir()
        for step in (2, 10):
            Image.fromarray(np.full((40, 40 * step, 3), step, np.uint8)).save(folder / "samples" / f"{step}.png")
    never = lambda folder: pytest.fail("nothing is drawn")
    shown = grids.side_by_side(opened(a, b), never, pytest.fail)
    assert shown.about.startswith("Pictures that training wrote.") and all(grid.address for grid in shown.grids)
    assert [grid.remark for grid in shown.grids] == ["step 10", "step 10"]
    tried = []
    shown = grids.side_by_side(opened(a, c), lambda folder: tried.append(folder), lambda message: None)
    assert tried == [a, c] and all("not from the same noise" in grid.remark for grid in shown.grids)


def test_the_loss_by_log_snr_is_compared_where_examples_and_noise_are_the_same(tmp_path):
    """On other points of the same smooth curves too; with another seed or fewer examples a sentence says why not."""
    config = {"seed": 0, "training": {"batch_size": 16}}
    for name, seed, num, points in (("a", 0, 256, 25), ("b", 0, 256, 30), ("c", 1, 256, 25), ("d", 0, 16, 25)):
        log_snr = np.linspace(13, -9, points)
        rows = {key: (1 / (1 + np.exp(-log_snr))).tolist() for key in ("train", "test")}
        folder = made(tmp_path / name, config=config | {"seed": seed})
        numbers = {"log_snr": log_snr.tolist(), **rows, "examples": {"train": num, "test": num}}
        write_json(folder / "loss_by_log_snr.json", numbers)
    for other in "bcd":
        curve, apart = pictures.loss_by_log_snr(opened(tmp_path / "a", tmp_path / other))
        assert curve.svg and bool(apart.svg) == (other == "b")
        assert apart.svg or apart.about.endswith("not of the same examples with the same noise.")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser")
def test_a_browser_sorts_the_page(tmp_path):
    """A click on the head of a column sorts by its numbers, the next one the other way round; what is missing is last."""
    values = {"a": 10.0, "b": 9.0, "c": 11.0}
    folders = [made(tmp_path / name, step_8=(value, 3.0)) for name, value in values.items()] + [made(tmp_path / "d")]
    compare.compare(folders, tmp_path / "out")
    page = tmp_path / "out" / "compare.html"
    script = """<script>
    const table = document.querySelector("table.sortable"), heads = [...table.tHead.rows[0].cells];
    const order = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent).join("");
    const button = heads.find(head => head.textContent === "bits/dim").querySelector("button");
    button.click(); const up = order(); button.click();
    document.title = up + " " + order() + " " + (document.documentElement.scrollWidth <= window.innerWidth);
    </script>"""
    page.write_text(page.read_text().replace("</body>", script + "</body>"))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=500,900", "--dump-dom"]
    result = subprocess.run(["chromium", *flags, f"file://{page}"], capture_output=True, text=True, timeout=120)
    assert "<title>bacd cabd true</title>" in result.stdout


# --- what is kept of the study ----------------------------------------------------------------------------------------


def test_the_numbers_of_the_results_page_are_those_of_the_runs_that_are_kept():
    """Every row of its table, and every paired difference in its prose."""
    page = (tiny.ROOT / "docs" / "results.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|(.+)\|$", page, re.MULTILINE)
    kept = {
        name: read.read(tiny.ROOT / "docs" / "results" / "fashion" / name, name, lambda s: s, pytest.fail)
        for name, _ in rows
    }
    every = list(kept.values())
    names = ("step", "training_operations", "bits_per_dim", "frechet_image_classifier")
    values = {row.name: dict(zip(kept, row.values)) for row in measures.quantities(every)}
    differences = {(every[p.run].name, every[p.other].name): p for p in pairs.pairs(every)[0]}
    assert len(rows) == len(list((tiny.ROOT / "docs" / "results" / "fashion").iterdir()))
    for name, cells in rows:
        _, steps, operations, bits, apart, distance, *_ = (cell.strip() for cell in cells.split("|"))
        step, spent, density, frechet = (values[each][name] for each in names)
        assert steps == f"{step.value:,}" and operations == f"{spent.value / 1e12:.1f}e12"
        assert bits == f"{density.value:.3f} ± {density.stderr:.3f}"
        assert distance == f"{frechet.value:.1f} ± {frechet.stderr:.1f}"
        if name != "base":
            pair = differences[name, "base"]
            assert apart == f"{pair.difference:.4f} ± {pair.stderr:.4f}"
    one_seed = re.sub(r"\n### .*?(?=\n## )", "", page, flags=re.DOTALL)
    said = set(re.findall(r"(0\.\d{4}) ± (0\.\d{4})", " ".join(one_seed.split())))
    true = {(f"{abs(p.difference):.4f}", f"{p.stderr:.4f}") for p in differences.values()}
    # means over seeds, and what has one seed that is not 0, see the next test
    true |= {*re.findall(r"\| -?(0\.\d{4}) ± (0\.\d{4}) \|", page), ("0.0496", "0.0014")}
    assert said and said <= true
    u, qc = (next(each.metrics["symmetry"]["asym"]["value"] for each in kept[name].evaluations) for name in ("u", "qc"))
    assert f"by a factor of {u / qc:.1f}" in page.replace("\n", " ")
    real = kept["base"].evaluations[0].metrics["samples"]["test_data"]
    for name, digits in (("classifier_accuracy", 3), ("frechet", 2), ("precision", 3)):
        value, error = (real[name][part] for part in ("value", "stderr"))
        assert f"{value:.{digits}f} ± {error:.{digits}f}" in page.replace("\n", " ")
    assert f"took {values['training_seconds']['base'].value:.0f} s of training" in page.replace("\n", " ")
    for path, names in (("README.md", ("base", "mixture")), ("docs/choosing.md", ("base", "mixture", "joint"))):
        said = " ".join((tiny.ROOT / path).read_text().split())
        for name in names:
            distance, used = values["frechet_image_classifier"][name], values["sample_evaluations"][name].value
            assert f"{distance.value:.1f} ± {distance.stderr:.1f}" in said
            assert name == "joint" or f"{used:.0f}" in re.findall(r"\b\d+\b", said)
        pair = differences["mixture", "base"]
        assert f"{-pair.difference:.4f} ± {pair.stderr:.4f}" in said


def kept(name, seed):
    """A run of the study, of which seed 0 has a folder of its own."""
    results = tiny.ROOT / "docs" / "results"
    folder = results / "fashion_seeds" / f"{name}-seed{seed}" if seed else results / "fashion" / name
    return read.read(folder, name, lambda s: s, pytest.fail)


def test_the_seeds_of_the_results_page_are_those_of_the_runs_that_are_kept():
    """Every number of the table, with means over seeds and their standard errors, and the spread of the base."""
    page = (tiny.ROOT / "docs" / "results.md").read_text()
    rows = re.findall(r"^\| `(\w+)` less `(\w+)` \|(.+)\|$", page, re.MULTILINE)
    assert rows
    for names in rows:
        apart, nearer = [], []
        for seed in range(3):
            runs = [kept(name, seed) for name in names[1::-1]]
            (pair,) = (pair for pair in pairs.pairs(runs)[0] if pair.quantity == "bits_per_dim")
            distances = measures.of(measures.quantities(runs), "frechet_image_classifier").values
            apart, nearer = [*apart, pair.difference], [*nearer, distances[1].value - distances[0].value]
        means = [mean_estimate(np.asarray(values)) for values in (apart, nearer)]
        words = [", ".join(f"{value:.4f}" for value in apart)]
        words += [f"{each.value:.{digits}f} ± {each.stderr:.{digits}f}" for each, digits in zip(means, (4, 1))]
        assert [cell.strip() for cell in names[2].split("|")] == words, names[:2]
    seeds = compared([kept(name, seed) for seed in range(3) for name in ("base", "mixture")]).seeds
    told = measures.of(seeds.rows, "bits_per_dim_less_first").values[1]
    assert f"| {told.value:.4f} ± {told.stderr:.4f} |" in page
    (pair,) = pairs.pairs([kept("base", 1), kept("dequantizer", 1)])[0]
    said = " ".join(page.split())
    assert said.count(f"by {-pair.difference:.4f} ± {pair.stderr:.4f}") == 2
    densities = [measures.of(measures.quantities([kept("base", seed)]), "bits_per_dim").values[0] for seed in range(3)]
    assert f"are {densities[0].value:.3f}, {densities[1].value:.3f} and {densities[2].value:.3f}" in said
    assert f"deviation of {np.std([each.value for each in densities], ddof=1):.3f} over seeds" in said


def test_the_results_of_the_readme_are_those_of_the_run_that_is_kept():
    """Every number of its table but those that other solvers and older runs gave."""
    folder = tiny.ROOT / "docs" / "results" / "digits" / "vp_digits"
    (evaluated,) = read.read(folder, "vp_digits", lambda s: s, pytest.fail).evaluations
    likelihood, samples = (evaluated.metrics[name] for name in ("likelihood", "samples"))
    model, real = samples["model"], samples["test_data"]
    in_words = lambda value, digits: f"{value['value']:.{digits}f} ± {value['stderr']:.{digits}f}"
    both = lambda metrics: f"{in_words(metrics['precision'], 3)}, {in_words(metrics['recall'], 3)}"
    rows = {
        "test bits/dim": [
            in_words(likelihood["bits_per_dim"], 3),
            f"{likelihood['mixture_bits_per_dim']:.3f}",
        ],
        "error of the ODE solver": [
            in_words(likelihood["solver_error"], 4),
            f"{likelihood['likelihood_nfe']:.0f} eval",
        ],
        "bound of the SDE model": [in_words(likelihood["bound"], 3)],
        "Frechet distance": [in_words(model["frechet"], 2), in_words(real["frechet"], 2)],
        "precision, recall": [both(model), both(real)],
        "class confidence": [in_words(model["confidence"], 3), f"{model['classes_found']} of 10"],
    }
    text = (tiny.ROOT / "README.md").read_text()
    for name, values in rows.items():
        (row,) = (line for line in text.splitlines() if line.startswith(f"| {name}"))
        assert all(value in row for value in values), (row, values)
    assert (
        f"and {likelihood['pilot_nfe']:.0f} to choose" in text
        and f"{likelihood['uniform_bits_per_dim']:.3f} for" in text
    )
    assert evaluated.settings["eval.bound_times"] == 100 and likelihood["likelihood_draws"] == 5
