"""Means over runs that differ in their seed alone."""

import json

import numpy as np
import pytest

from scoreflow import compare
from scoreflow.comparison import forms, seeds
from scoreflow.comparison.contents import compared
from tests.test_compare import _allow_rank_promotion, made, opened  # noqa: F401  (a fixture)

IMAGES = np.linspace(-1, 1, 20)


def run(folder, seed, bits, *, step=8, begins="", **settings):
    """A run of a seed, whose bits/dim have the mean `bits` over the same images."""
    config = {"data": {"name": "digits"}, "seed": seed, "training": {"batch_size": 16}, **settings}
    return made(folder, config=config | {"init_from": begins}, **{f"step_{step}": bits + IMAGES})


@pytest.fixture
def study(tmp_path):
    """Three seeds of a base, and of what begins with it, which is worse by 0.1, 0.2 and 0.6."""
    folders = []
    for seed, (bits, more) in enumerate(((2.0, 0.1), (2.4, 0.2), (2.2, 0.6))):
        folders.append(run(tmp_path / f"base-{seed}", seed, bits))
        begins = str(tmp_path / f"base-{seed}")
        folders.append(run(tmp_path / f"then-{seed}", seed, bits + more, begins=begins, loss={"order": 2}))
    return folders


def test_means_over_seeds_have_the_spread_of_training_and_differences_that_of_the_pairs(study):
    found = compared(opened(*study)).seeds
    assert found.groups == [("base-0", {0: 0, 1: 2, 2: 4}), ("then-0", {0: 1, 1: 3, 2: 5})]
    rows = {row.name: row.values for row in found.rows}
    assert [value.value for value in rows["seeds"]] == [3, 3]
    base, then = rows["bits_per_dim"]
    assert (base.value, base.stderr) == pytest.approx((2.2, 0.2 / 3**0.5))
    assert then.value == pytest.approx(2.5)
    none, apart = rows["bits_per_dim_less_first"]
    assert none.value is None
    # of 0.1, 0.2 and 0.6 the mean is 0.3 and the sum of squares around it 0.14
    assert (apart.value, apart.stderr) == pytest.approx((0.3, (0.14 / 2 / 3) ** 0.5))


def test_frechet_distances_are_apart_by_seed(tmp_path):
    distances = {("a", 0): 10.0, ("a", 1): 20.0, ("b", 0): 13.0, ("b", 1): 25.0}
    folders = [
        made(
            tmp_path / f"{name}-{seed}",
            config={"data": {"name": "digits"}, "seed": seed, "loss": {"name": name}},
            step_8=(2.0, value),
        )
        for (name, seed), value in distances.items()
    ]
    rows = {row.name: row.values for row in compared(opened(*folders)).seeds.rows}
    assert [v.value for v in rows["frechet_pixels"]] == [15.0, 19.0]
    assert (rows["frechet_pixels_less_first"][1].value, rows["frechet_pixels_less_first"][1].stderr) == (4.0, 1.0)
    assert "bits_per_dim_less_first" not in rows  # these runs have not kept densities by example


@pytest.mark.parametrize(
    "change", [{"loss": {"order": 3}}, {"training": {"batch_size": 32}}, {"init_from": "elsewhere"}, {"seed": None}]
)
def test_runs_that_differ_in_more_are_no_group(tmp_path, change):
    one, other = ({"data": {"name": "digits"}, "seed": seed, "training": {"batch_size": 16}} for seed in (0, 1))
    folders = [
        made(tmp_path / "a", config=one, step_8=IMAGES),
        made(tmp_path / "b", config=other | change, step_8=IMAGES),
    ]
    assert seeds.groups(opened(*folders)) == []
    assert "Over seeds" not in forms.in_terminal(compared(opened(*folders)))


def test_settings_of_evaluation_and_data_described_by_another_version_are_no_difference(tmp_path):
    folders = [run(tmp_path / f"{seed}", seed, 2.0, eval={"draws": seed}) for seed in range(2)]
    path = folders[1] / "config.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"data": about["data"] | {"levels": 256}}))
    assert [group.members for group in seeds.groups(opened(*folders))] == [{0: 0, 1: 1}]


def test_runs_that_begin_with_each_other_are_read_all_the_same(tmp_path):
    folders = [run(tmp_path / name, 0, 2.0, begins=str(tmp_path / other)) for name, other in ("ab", "ba")]
    assert seeds.groups(opened(*folders)) == []


def test_what_begins_with_runs_that_are_not_compared_is_no_group(tmp_path, study):
    """They may differ in more than their seed; with the first run's folder known by its name alone they are."""
    later = [study[1], study[3]]
    assert seeds.groups(opened(*later)) == []
    for folder in study:
        path = folder / "config.json"
        content = json.loads(path.read_text())
        source = content["config"]["init_from"]
        content["config"]["init_from"] = f"/of/another/machine/{source.rpartition('/')[2]}" if source else ""
        path.write_text(json.dumps(content))
    assert [group.name for group in seeds.groups(opened(*study))] == ["base-0", "then-0"]


def test_every_form_has_the_table(study, tmp_path, capsys):
    compare.compare(study, tmp_path / "out")
    printed = capsys.readouterr().out
    written = [(tmp_path / "out" / f"compare.{kind}").read_text() for kind in ("md", "html")]
    for text in (printed, *written):
        assert "Over seeds" in text and "0.30 ± 0.15" in text
    content = json.loads((tmp_path / "out" / "compare.json").read_text())["seeds"]
    assert [each["runs"] for each in content] == [
        {str(seed): f"{name}-{seed}" for seed in range(3)} for name in ("base", "then")
    ]
    assert content[1]["values"]["bits_per_dim_less_first"]["value"] == pytest.approx(0.3)


def test_runs_that_begin_with_the_same_one_are_named_together(tmp_path):
    folders = [run(tmp_path / name, 0, 2.0, begins="runs/first" if name != "c" else "") for name in "abc"]
    said = [note for note in compared(opened(*folders)).notes if "began" in note]
    assert said == ["a and b began with the parameters of runs/first, whose training is not in their cost."]
