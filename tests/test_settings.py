"""Every setting of every choice is a flag, from every config file, with its condition, default and meaning."""

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scoreflow import cli, configure, types
from scoreflow.configure import overrides
from scoreflow.configure.catalogue import CATALOGUES, SECTIONS
from scoreflow.runs import report
from scoreflow.runs.errors import UserError
from scoreflow.settings import settings
from tests import tiny

CONFIGS = sorted(path for path in (tiny.ROOT / "configs").glob("*.py"))
ROWS = [(section, row) for section, catalogue in CATALOGUES.items() for row in catalogue.rows]
RIGHT = {
    float: ("0.25", "1", "2.5", "0", "-1.5", "1e-3"),
    int: ("1", "2", "3", "0", "7", "100", "-1"),
    bool: ("True", "false", "1", "0"),
    tuple: ("(1, 2)", "3", "(0.5, 0.25)", "validation", "('frechet',)", "hue, scale", "()"),
}
WRONG = {
    float: ("many", "nan", "inf", "-1", "0", "7", ""),
    int: ("many", "2.5", "-2", "0", "9", "50", "1e3"),
    bool: ("maybe", "2", ""),
    tuple: ("(0,)", "(-1,)", "nonsense"),
    str: ("nonsense",),
}


def words_of(check) -> list[str]:
    return check.words.removeprefix("one of ").split(", ") if check.words.startswith("one of ") else []


def try_setting(config, names: dict[str, str], name: str, setting) -> tuple[int, int]:
    """Sets one setting by text to right and wrong values; how many of each were tried."""
    check, right, wrong = setting.check, 0, 0
    candidates = (words_of(check) or ["any words/at_all"]) if check.kind is str else RIGHT[check.kind]
    for text in candidates:
        try:
            value = check.parse(text)
        except ValueError:
            continue
        if not check.allows(value):
            continue
        resolved = overrides.flatten(configure.resolve(config, names | {name: text}).to_dict())[name]
        assert resolved == value and isinstance(
            resolved, int if check.kind is float and type(value) is int else check.kind
        )
        right += 1
    for text in WRONG[check.kind]:
        if check.kind is str and not words_of(check):
            continue  # any text is right
        try:
            if check.allows(check.parse(text)):
                continue
        except ValueError:
            pass
        with pytest.raises(UserError, match=re.escape(f"{name} = ")) as error:
            configure.resolve(config, names | {name: text})
        assert check.words in str(error.value) and "\n" not in str(error.value)
        wrong += 1
    return right, wrong


@pytest.mark.parametrize("section, row", ROWS)
def test_every_setting_of_every_row_is_a_flag(section, row):
    config = configure.defaults()
    names = {f"{section}.name": row}
    assert configure.resolve(config, names)[section].name == row
    for name, setting in CATALOGUES[section].settings(row).items():
        right, wrong = try_setting(config, names, f"{section}.{name}", setting)
        assert right and (wrong or setting.check.words == "text"), name


@pytest.mark.parametrize("section", SECTIONS)
def test_every_other_setting_is_a_flag(section):
    config = configure.defaults()
    for name, setting in settings(*SECTIONS[section]).items():
        right, wrong = try_setting(config, {}, f"{section}.{name}".removeprefix("."), setting)
        assert right and (wrong or setting.check.words == "text"), name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_setting_has_a_flag_from_every_config_file(path):
    """Whatever a file chooses, any other choice and each of its settings can be made on the command line."""
    config = tiny.load(path)
    for section, row in ROWS:
        said = {f"{section}.name": row}
        said |= {f"{section}.{name}": str(s.default) for name, s in CATALOGUES[section].settings(row).items()}
        resolved = configure.resolve(config, said)[section].to_dict()
        wanted = {name: s.default for name, s in CATALOGUES[section].settings(row).items()}
        assert resolved == {"name": row, **wanted}


def test_every_setting_says_what_it_means():
    for section, catalogue in CATALOGUES.items():
        assert catalogue.meaning.endswith(".") and catalogue.default in catalogue.rows
        for row in catalogue.rows:
            for name, setting in catalogue.settings(row).items():
                assert re.fullmatch(r"[A-Z\d$].{8,}\.", setting.meaning), (
                    f"{section}.{name} of {row}: {setting.meaning!r}"
                )
    for section, sources in SECTIONS.items():
        for name, setting in settings(*sources).items():
            assert re.fullmatch(r"[A-Z\d$].{8,}\.", setting.meaning), f"{section}.{name}: {setting.meaning!r}"


def test_every_default_meets_its_own_condition():
    for section, row in ROWS:
        for name, setting in CATALOGUES[section].settings(row).items():
            assert setting.check.holds(setting.default), f"{section}.{name} of {row}"


def test_names_are_applied_first_and_bring_their_defaults():
    config = tiny.load(tiny.ROOT / "configs" / "digits_processes.py", "ve_power")
    said = {"process.sigma_max": "20", "process.name": "ve_geometric", "grid.name": "uniform"}
    resolved = configure.resolve(config, said)
    assert resolved.process.to_dict() == {"name": "ve_geometric", "sigma_min": 0.01, "sigma_max": 20.0, "horizon": 1.0}
    assert resolved.grid.to_dict() == {"name": "uniform"}  # rho of the file's grid went with it
    assert configure.resolve(config).grid.rho == 7.0


def test_a_name_in_a_config_file_replaces_the_settings_of_the_choice_before():
    config = configure.defaults()
    config.process.name = "ve_geometric"
    config.process.sigma_max = 20.0
    config.process.update({"name": "vp_cosine", "offset": 0.01})
    assert config.process.to_dict() == {"name": "vp_cosine", "offset": 0.01, "horizon": 0.995}
    config.process.update({"sigma_max": 9.0, "name": "ve_geometric"})  # the name counts first wherever it stands
    assert config.process.to_dict() == {"name": "ve_geometric", "sigma_min": 0.01, "sigma_max": 9.0, "horizon": 1.0}
    config.update({"process": {"beta_max": 7.0, "name": "vp_linear"}})
    assert config.process.to_dict() == {"name": "vp_linear", "beta_min": 0.1, "beta_max": 7.0, "horizon": 1.0}


@pytest.mark.parametrize(
    "said, words",
    [
        ({"loss.order": "3"}, 'loss.order: first_order has no setting "order"; high_order has'),
        (
            {"process.sigma_max": "3"},
            'process.sigma_max: vp_linear has no setting "sigma_max"; ve_geometric, ve_constant',
        ),
        ({"training.lr": "1"}, "training.lr is not a known setting; the nearest are training.learning_rate,"),
        (
            {"training.lerning_rate": "1"},
            "training.lerning_rate is not a known setting; the nearest are training.learning_rate,",
        ),
        ({"nonsense": "1"}, "nonsense is not a known setting; the nearest are"),
        ({"process": "edm"}, "process = 'edm': process is a section; set process.name"),
        ({"process.name": "vp"}, "process.name = 'vp' must be one of vp_linear, vp_constant, vp_power"),
    ],
)
def test_a_wrong_flag_names_the_setting_and_what_is_allowed(said, words):
    with pytest.raises(UserError, match=re.escape(words)):
        configure.resolve(configure.defaults(), said)


def test_flags_of_before_the_renaming_are_understood():
    said = {"score.kind": "noise", "score.energy": "code", "training.optimiser": "adam", "data.centred": "False"}
    resolved = configure.resolve(configure.defaults(), said)
    assert (resolved.score.prediction, resolved.score.energy_power) == ("noise", -1)
    assert (resolved.training.optimizer, resolved.data.centered) == ("adam", False)


def test_the_page_of_settings_is_current():
    page = tiny.module(tiny.ROOT / "docs" / "generate_settings.py").page()
    assert (tiny.ROOT / "docs" / "settings.md").read_text() == page, "run: python docs/generate_settings.py"


def test_show_prints_every_setting_with_a_mark_where_it_differs():
    command = [
        sys.executable,
        "main.py",
        "--config=configs/vp_digits.py",
        "--mode=show",
        "--config.loss.name=high_order",
    ]
    shown = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True, check=True).stdout
    rows = {m[2]: (m[1], m[3]) for m in re.finditer(r"^(\*?) *([\w.]+) = (\S+)", shown, re.MULTILINE)}
    assert rows["loss.name"] == ("*", "'high_order'") and rows["loss.order"] == ("", "2")
    assert rows["training.steps"] == ("*", "2800") and rows["process.beta_max"] == ("", "20.0")
    config = configure.resolve(tiny.load(tiny.ROOT / "configs" / "vp_digits.py"), {"loss.name": "high_order"})
    assert rows.keys() == overrides.flatten(config.to_dict()).keys()
    assert "Number of optimizer steps" in shown


def test_show_ends_without_a_word_where_its_reader_has_enough():
    """The first line goes out when the process at the other end is gone."""
    command = f"({sys.executable} main.py --config=vp_digits --mode=show; echo code $? >&2) | head -c 1"
    ended = subprocess.run(command, shell=True, cwd=tiny.ROOT, capture_output=True, text=True, check=True)
    assert re.fullmatch("code [01]\n", ended.stderr), ended.stderr


def test_a_table_is_wrapped_into_the_columns_it_is_given():
    rows = [("*", "a = 1", "words " * 9), (" ", "b.long = 2", "one word"), (" ", "c = 3")]
    lines = report.table(rows, 40).splitlines()
    assert max(map(len, lines)) <= 40 and len(lines) == 5
    assert [line[15:].strip() for line in lines[:3]] == [" ".join(["words"] * 4), " ".join(["words"] * 4), "words"]
    assert lines[0].startswith("*  a = 1") and lines[1].startswith(" " * 15) and lines[4] == "   c = 3"


def test_a_shipped_config_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "configs", sys.modules.get("configs"))
    assert configure.resolve(cli.load_config("vp_digits")).training.steps == 2800
    assert configure.resolve(cli.load_config("digits_orders:3")).loss.order == 3
    own = Path("mine.py")
    own.write_text(
        "from configs import vp_digits\n\ndef get_config():\n    c = vp_digits.get_config()\n    c.seed = 3\n    return c\n"
    )
    assert configure.resolve(cli.load_config("mine.py")).seed == 3
    with pytest.raises(UserError, match="no shipped config of that name; these are: cifar10_processes, digits_bridge"):
        cli.load_config("vp_digit")


def test_settings_are_taken_from_the_command_line_as_other_flags_are():
    argv = [
        "main.py",
        "--config=a.py",
        "--config.seed",
        "3",
        "--config.t_min=1e-4",
        "--config.data.flip",
        "--mode=eval",
    ]
    rest, settings = cli.take_settings(argv)
    assert rest == ["main.py", "--config=a.py", "--mode=eval"]
    assert settings == {"seed": "3", "t_min": "1e-4", "data.flip": "True"}


# What must be refused, and what must be understood, stated by hand.
@pytest.mark.parametrize(
    "name, text",
    [
        ("seed", "99999999999999999999"),
        ("seed", "-1"),
        ("model.multipliers", "()"),
        ("model.multipliers", "(0, 2)"),
        ("model.multipliers", "(1, True)"),
        ("eval.rtols", "()"),
        ("sampling.steps", "100000000000"),
        ("training.steps", "2.5"),
        ("training.learning_rate", "nan"),
        ("training.best", "(speed,)"),
        ("data.flip", "perhaps"),
        ("data.test_fraction", "1"),
        ("score.energy_power", "3"),
    ],
)
def test_an_impossible_value_is_refused(name, text):
    with pytest.raises(UserError, match=re.escape(f"{name} = ") + ".* must be "):
        configure.resolve(configure.defaults(), {name: text})


@pytest.mark.parametrize(
    "name, text, value",
    [
        ("training.steps", "1e3", 1000),
        ("training.learning_rate", "1e-3", 1e-3),
        ("model.multipliers", "1,2,4", (1, 2, 4)),
        ("model.attention", "()", ()),
        ("eval.horizons", "0.5", (0.5,)),
        ("training.best", "('validation', 'frechet')", ("validation", "frechet")),
        ("data.flip", "true", True),
        ("score.energy_power", "-1", -1),
        ("init_from", "~/runs/a b", "~/runs/a b"),
    ],
)
def test_a_value_is_read_as_people_write_it(name, text, value):
    resolved = overrides.flatten(configure.resolve(configure.defaults(), {name: text}).to_dict())[name]
    assert resolved == value and type(resolved) is type(value)


def test_a_config_file_loses_no_setting_without_a_word():
    config = configure.defaults()
    with pytest.raises(UserError, match='process.rho: vp_linear has no setting "rho"; vp_power, ve_power'):
        config.process.rho = 3.0
    config.process.beta_max = 10.0
    config.process.name = "vp_linear"  # the same choice: nothing is reset
    assert config.process.beta_max == 10.0
    config.process = {"sigma_max": 20.0, "name": "ve_geometric"}  # a whole section, in any order
    assert configure.resolve(config).process.sigma_max == 20.0
    with pytest.raises(UserError, match="process = 'edm': process is a section; set process.name"):
        config.process = "edm"
    config.lock()
    config.process.name = "vp_cosine"
    for same in (copy.deepcopy(config), config.copy_and_resolve_references(), config):
        assert configure.resolve(same).process.to_dict() == {"name": "vp_cosine", "offset": 0.008, "horizon": 0.995}


def test_a_config_file_of_before_the_renaming_is_understood():
    config = configure.defaults()
    config.times.name = "uniform"
    config.score.kind = "noise"
    config.penalty.name = "quasi_conservative"
    config.penalty.law = "gaussian"
    resolved = configure.resolve(config)
    assert (resolved.sample_times.name, resolved.score.prediction) == ("uniform", "noise")
    assert resolved.penalty.probe == "gaussian"


@pytest.mark.parametrize(
    "text, words",
    [
        ("def get_config():\n    return None\n", "get_config returns NoneType; it must return the config"),
        ("def get_config():\n    return 1 / 0\n", r"\(line 2\): ZeroDivisionError: division by zero"),
        (
            "from configs import vp_digits\ndef get_config():\n    c = vp_digits.get_config()\n    c.proces.name = 'edm'\n",
            "line 4",
        ),
    ],
)
def test_a_broken_config_file_is_one_line(text, words, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "configs", sys.modules.get("configs"))
    (tmp_path / "vp_digits.py").write_text(text)  # a name that is also a shipped one's
    with pytest.raises(UserError, match=words) as error:
        cli.load_config(str(tmp_path / "vp_digits.py"))
    assert "\n" not in str(error.value)


def test_a_variant_of_a_config_without_variants_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "configs", sys.modules.get("configs"))
    with pytest.raises(UserError, match="vp_digits.py has no variants"):
        cli.load_config("vp_digits:large")


# Every condition of `types`, by values that are right and wrong in themselves.
CONDITIONS = {
    "Positive": ([1e-9, 3], [0, -1.0, float("inf"), float("nan"), True, "1"]),
    "PositiveOrAuto": ([1e-9, 3, "auto"], [0, -1.0, "automatic", ""]),
    "NonNegative": ([0, 0.0, 2.5], [-1e-9, float("inf"), False]),
    "Number": ([-3, 0.5], [float("nan"), float("-inf"), "0"]),
    "Fraction": ([0, 0.999], [1, -0.1]),
    "Probability": ([0, 0.12, 1], [-0.01, 1.01, True]),
    "Share": ([1, 1e-6], [0, 1.01]),
    "Inside": ([0.5], [0, 1]),
    "Seed": ([0, 2**32 - 1], [-1, 2**32, 1.0, True]),
    "Steps": ([1, 10**6], [0, 10**6 + 1, 2.0]),
    "Count": ([1, 10**9], [0, -1, 1.0, True]),
    "CountOrZero": ([0, 1], [-1, 0.0, False]),
    "Index": ([-1, 0], [-2]),
    "Flag": ([True, False], [0, 1, "True"]),
    "Text": (["", "a"], [1]),
    "Counts": ([(1,), (2, 3)], [(), (0,), (1.0,), (True,), [1], 1]),
    "CountsOrNone": ([(), (4,)], [(0,), (-1, 2)]),
    "Numbers": ([(1, 0.5)], [(), (0.0,), (float("inf"),)]),
    "NumbersOrNone": ([(), (1e-3,)], [(-1.0,), (True,)]),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_every_condition_allows_what_it_should(name):
    (check,) = getattr(types, name).__metadata__
    right, wrong = CONDITIONS[name]
    assert all(check.allows(value) for value in right) and not any(check.allows(value) for value in wrong)


def test_every_condition_of_types_is_held():
    named = {
        name for name, kind in vars(types).items() if isinstance(getattr(kind, "__metadata__", (None,))[0], types.Check)
    }
    assert named == CONDITIONS.keys()


def test_words_of_the_command_line_are_read_as_people_mean_them():
    parse = lambda name, text: getattr(types, name).__metadata__[0].parse(text)
    assert [parse("Flag", word) for word in ("1", "True", "0", "false")] == [True, True, False, False]
    assert [parse("Counts", word) for word in ("(10, 50)", "10,50", "[10,50]")] == [(10, 50)] * 3
    assert parse("Count", "1e3") == 1000 and parse("Positive", "2") == 2.0


def test_the_settings_that_help_names_are_accepted():
    """Each line by itself, from the defaults; its values are those that the config then has."""
    lines = [re.findall(r"--config\.\S+", line) for line in cli.COMMON.splitlines() if line.startswith("    ")]
    assert len(lines) == 9 and all(lines)
    for words in lines:
        _, settings = cli.take_settings(words)
        resolved = overrides.flatten(configure.resolve(configure.defaults(), settings).to_dict())
        assert {name: str(resolved[name]) for name in settings} == settings
