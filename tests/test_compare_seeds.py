"""Means over runs that differ in their seed alone."""

import json
import re

import numpy as np
import pytest

from scoreflow import compare
from scoreflow.comparison import forms, seeds, tables
from scoreflow.comparison.contents import compared
from tests.test_compare import _allow_rank_promotion, made, opened  # noqa: F401  (a fixture)

IMAGES = np.linspace(-1, 1, 20)


def run(folder, seed, bits, *, step=8, begins="", **settings):
    """A run of a seed, whose bits/dim have the mean `bits` over the same images."""
    config = {"data": {"name": "digits"}, "seed": seed, "training": {"batch_size": 16}, **settings}
    return made(folder, config=config | {"init_from": begins}, **{f"step_{step}": bits + IMAGES})


def groups_of(*folders):
    return [group.members for group in seeds.groups(opened(*folders))[0]]


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
    seen = compared(opened(*study)).seeds
    assert seen.groups == [("base-0", {0: 0, 1: 2, 2: 4}), ("then-0", {0: 1, 1: 3, 2: 5})]
    assert [group.title for group in seen.groups] == ["base-0 (seeds 0, 1, 2)", "then-0 (seeds 0, 1, 2)"]
    rows = {row.name: row.values for row in seen.rows}
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
    "change",
    [
        {"loss": {"order": 3}},
        {"training": {"batch_size": 16, "steps": 7}},
        {"sampler": {"name": "heun"}},
        {"init_from": "elsewhere"},
        {"seed": None},
        {"seed": True},
    ],
)
def test_runs_that_differ_in_more_are_no_group(tmp_path, change):
    one, other = ({"data": {"name": "digits"}, "seed": seed, "training": {"batch_size": 16}} for seed in (0, 1))
    folders = [
        made(tmp_path / "a", config=one, step_8=IMAGES),
        made(tmp_path / "b", config=other | change, step_8=IMAGES),
    ]
    assert groups_of(*folders) == []
    assert "Over seeds" not in forms.in_terminal(compared(opened(*folders)))


def test_what_changes_neither_the_model_nor_its_samples_is_no_difference(tmp_path):
    """Settings of evaluation, of the log and of the place of the data, and what another version says of the data."""
    other = {"eval": {"draws": 3}, "sampling": {"num": 7}, "training": {"batch_size": 16, "log_every": 2}}
    folders = [run(tmp_path / "a", 0, 2.0), run(tmp_path / "b", 1, 2.0, **other)]
    about = json.loads((folders[1] / "config.json").read_text())
    about["data"]["levels"] = 256
    about["config"]["data"]["dir"] = "elsewhere"
    (folders[1] / "config.json").write_text(json.dumps(about))
    assert groups_of(*folders) == [{0: 0, 1: 1}]
    about["data"]["digest"] = "another"
    (folders[1] / "config.json").write_text(json.dumps(about))
    assert groups_of(*folders) == []


def test_seeds_that_share_what_they_begin_with_are_no_group(tmp_path, study):
    """Its spread would be missing. Each begins with the one of its own seed, or the row does not appear."""
    bases, later = study[::2], study[1::2]
    assert groups_of(*study) == [{0: 0, 1: 2, 2: 4}, {0: 1, 1: 3, 2: 5}]
    assert groups_of(*later) == []  # what they began with is not compared
    for begins in ([bases[0]] * 3, bases[1:] + bases[:1]):
        for seed, (folder, first) in enumerate(zip(later, begins)):
            run(folder, seed, 2.0, begins=str(first), loss={"order": 2})
        assert groups_of(*study) == [{0: 0, 1: 2, 2: 4}]


def test_what_a_run_begins_with_is_found_by_its_folder_or_by_a_name_of_its_own(tmp_path):
    """Kept results say the name alone; of two folders of one name it says nothing."""
    folders = [run(tmp_path / f"base-{seed}", seed, 2.0) for seed in range(2)]
    folders += [
        run(tmp_path / f"then-{s}", s, 2.0, begins=f"/of/another/base-{s}", loss={"order": 2}) for s in range(2)
    ]
    assert groups_of(*folders) == [{0: 0, 1: 1}, {0: 2, 1: 3}]
    twin = run(tmp_path / "other" / "base-1", 1, 2.0, loss={"order": 3})
    assert groups_of(*folders, twin) == [{0: 0, 1: 1}]
    run(folders[3], 1, 2.0, begins=str(folders[1]), loss={"order": 2})
    assert groups_of(*folders, twin) == [{0: 0, 1: 1}, {0: 2, 1: 3}]


def test_runs_that_begin_with_each_other_are_read_all_the_same(tmp_path):
    folders = [run(tmp_path / name, 0, 2.0, begins=str(tmp_path / other)) for name, other in ("ab", "ba")]
    assert groups_of(*folders) == []


def test_of_two_runs_with_the_same_seed_the_later_is_left_out_and_named(tmp_path):
    folders = [run(tmp_path / name, seed, 2.0) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    folders += [run(tmp_path / name, 0, 2.0, loss={"order": 2}) for name in "de"]  # of one seed, so in no mean at all
    seen = compared(opened(*folders))
    assert [group.members for group in seen.seeds.groups] == [{0: 0, 1: 2}]
    said = [note for note in seen.notes if "means over seeds" in note]
    assert said == ["b is not among the means over seeds: a is the same with this seed."]


def test_means_and_differences_are_over_the_seeds_that_are_known(tmp_path):
    """The first group comes later in some pairs, has other seeds, and one of its densities is not finite."""
    first, second = {0: 1.0, 3: 1.5, 4: 9.0}, {3: 2.5, 0: 1.4, 5: 7.0, 4: 8.0}
    folders = [run(tmp_path / f"a-{seed}", seed, bits) for seed, bits in first.items()]
    folders += [run(tmp_path / f"b-{seed}", seed, bits, loss={"order": 2}) for seed, bits in second.items()]
    folders = [folders[i] for i in (0, 3, 1, 4, 5, 2, 6)]  # a-0, b-3, a-3, b-0, b-5, a-4, b-4
    path = folders[5] / "eval" / "8" / "examples.npz"
    content = dict(np.load(path))
    np.savez(path, **content | {"bits_per_dim": np.full(20, np.nan)})
    seen = compared(opened(*folders)).seeds
    rows = {row.name: row.values for row in seen.rows}
    assert (
        rows["bits_per_dim"][1].value == pytest.approx((2.5 + 1.4 + 7.0 + 8.0) / 4)
        and not rows["bits_per_dim"][1].source
    )
    apart = rows["bits_per_dim_less_first"][1]  # 1.0 and 0.4
    assert (apart.value, apart.stderr, apart.source) == (pytest.approx(0.7), pytest.approx(0.3), "2 seeds")
    text = tables.plain(forms.seed_table(compared(opened(*folders))))
    assert "0.70 ± 0.30 (2" in text and "nan" not in text
    third = [run(tmp_path / f"c-{seed}", seed, 2.0, loss={"order": 3}) for seed in (0, 9)]  # one seed is too few
    more = {row.name: row.values for row in compared(opened(*folders, *third)).seeds.rows}
    assert more["bits_per_dim_less_first"][2].value is None
    one = compared(opened(*folders[:2], folders[3])).seeds  # of the first there is a single seed
    assert [group.name for group in one.groups] == ["b-0"]
    assert not any(value.value for row in one.rows if row.name.endswith("less_first") for value in row.values)


def test_bounds_are_apart_by_their_own_pairs(tmp_path):
    """Bounds are 1 above the densities of the first runs, and 3 above those of the others."""
    folders = []
    for name, above in (("a", 1.0), ("b", 3.0)):
        for seed in range(2):
            folder = run(tmp_path / f"{name}-{seed}", seed, 2.0 + seed, loss={"name": name})
            path = folder / "eval" / "8"
            content = dict(np.load(path / "examples.npz"))
            np.savez(path / "examples.npz", **content, bound=content["bits_per_dim"] + above)
            metrics = json.loads((path / "metrics.json").read_text())
            metrics["likelihood"]["bound"] = {"value": 2.0 + seed + above, "stderr": 0.1}
            (path / "metrics.json").write_text(json.dumps(metrics))
            folders.append(folder)
    rows = {row.name: row.values for row in compared(opened(*folders)).seeds.rows}
    assert rows["bound_bits_per_dim_less_first"][1].value == pytest.approx(2.0)
    assert rows["bits_per_dim_less_first"][1].value == pytest.approx(0.0)
    assert "density_evaluations" not in rows  # neither better nor worse


def test_seeds_that_were_evaluated_otherwise_are_named(tmp_path):
    folders = [run(tmp_path / f"{seed}", seed, 2.0) for seed in range(2)]
    path = folders[1] / "eval" / "8" / "eval.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"settings": {"eval.draws": 1}}))
    said = [note for note in compared(opened(*folders)).notes if "evaluated with" in note]
    assert said == ["The seeds of 0 were evaluated with other settings: eval.draws."]


def test_every_form_has_the_table(study, tmp_path, capsys):
    compare.compare(study, tmp_path / "out")
    printed = capsys.readouterr().out
    written = [(tmp_path / "out" / f"compare.{kind}").read_text() for kind in ("md", "html")]
    for text in (printed, *written):
        assert "Over seeds" in text and "0.30 ± 0.15" in text
    whole = json.loads((tmp_path / "out" / "compare.json").read_text())
    content = whole["seeds"]
    assert [(each["name"], each["runs"]) for each in content] == [
        (f"{name}-0", {str(seed): f"{name}-{seed}" for seed in range(3)}) for name in ("base", "then")
    ]
    assert whole["titles"]["bits_per_dim_less_first"] == "bits/dim, less base-0"
    assert content[1]["values"]["bits_per_dim_less_first"]["value"] == pytest.approx(0.3)


def test_runs_that_begin_with_the_same_one_are_named_together(tmp_path):
    folders = [run(tmp_path / name, 0, 2.0, begins="runs/first" if name != "c" else "") for name in "abc"]
    said = [note for note in compared(opened(*folders)).notes if "began" in note]
    assert said == ["a and b began with the parameters of runs/first, whose training is not in their cost."]


def test_beginnings_that_are_no_text_are_named_as_they_are(tmp_path):
    folders = [run(tmp_path / str(value), 0, 2.0, begins=value) for value in (5, True, 3.5)]
    said = [note for note in compared(opened(*folders)).notes if "began" in note]
    assert len(said) == 3 and said[0].startswith("5 began with the parameters of 5,")


def test_the_best_run_is_told_against_runs_of_other_kinds(study):
    comparison = compared(opened(*study))
    said = forms.in_terminal(comparison)
    told = re.findall(r"(\S+) has \S+ ± \S+ bits/dim less than ([^ ,]+)", said.replace("\n", " "))
    assert told[0] == ("base-0", "then-0") and ("base-0", "base-1") not in told
    assert said.index("Over seeds") < said.index("Paired differences")
