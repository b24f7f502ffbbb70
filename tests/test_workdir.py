"""Folders of runs: today's settings against those of a run that an older version configured."""

import json

import numpy as np
import pytest

from scoreflow.runs import parallel, renamed, workdir
from scoreflow.runs.errors import UserError

# `config.json` of configs/vp_digits.py as version 0.1.0 wrote it.
OLD = """
{
  "config": {
    "checkpoint": "newest",
    "data": {"binarised": false, "bits": 0, "centred": true, "conditional": false, "dequantisation": "uniform", "dir": "",
      "flip": false, "image_size": 0, "levels": 256, "name": "digits", "path": "", "test_fraction": 0.1},
    "decoder": {"name": "none"},
    "dequantiser": {"name": "none"},
    "eval": {"atol": 0.001, "atols": [1e-05, 1e-06], "baseline": true, "batch_size": 120, "bound_times": 0, "check": 120,
      "clock": "time", "dequantisation": "uniform", "diagnose": 0, "divergence": "hutchinson", "draws": 5,
      "features": "digits", "horizons": [], "likelihood": true, "max_steps": 1000, "neighbours": 3, "num_samples": 1500,
      "num_test": 0, "rtol": 0.001, "rtols": [0.001, 0.0001, 1e-05], "score_error": 0, "symmetry": 0,
      "symmetry_probes": 16, "symmetry_times": 100, "t_min": 0.0, "tolerances": 0},
    "grid": {"name": "log_snr"},
    "init_from": "",
    "latent": {"name": "none"},
    "loss": {"name": "first_order"},
    "model": {"attention": [], "blocks": 1, "channels": 16, "dropout": 0.0, "dtype": "float32", "multipliers": [1, 4],
      "name": "unet", "num_heads": 1, "remat": false},
    "penalty": {"name": "none"},
    "plan": {"accuracy": 0.1, "num": 10000, "score_error": 0.0, "steps": [10, 20, 50, 100, 200, 500, 1000]},
    "process": {"beta_max": 20.0, "beta_min": 0.1, "horizon": 1.0, "name": "vp_linear"},
    "sampler": {"denoise": true, "name": "dpm_solver_pp_2m"},
    "sampling": {"batch_size": 100, "guidance": 1.0, "inpaint": "none", "label": -1, "num": 100, "scale_steps": true,
      "steps": 40, "t_min": 0.001},
    "score": {"data_rms": 1.0, "energy": "none", "kind": "v", "mixed": false, "mixed_logit": -3.0},
    "seed": 0,
    "t_min": 1e-05,
    "terminal": {"name": "prior"},
    "times": {"name": "importance"},
    "training": {"accumulate": 1, "batch_size": 64, "best": [], "beta1": 0.9, "beta2": 0.999, "checkpoint_every": 500,
      "clip": 1.0, "ema_decay": 0.999, "eps": 1e-08, "keep": 3, "label_dropout": 0.0, "learn": "all",
      "learning_rate": 0.002, "learning_rate_end": 0.0, "log_every": 20, "optimiser": "adamw", "sample_every": 0,
      "schedule": "cosine", "skip": 0, "split_state": false, "steps": 2800, "steps_per_dispatch": 1,
      "validate_every": 200, "warmup": 100, "weight_decay": 0.0},
    "vae": {"name": "none"},
    "weight": {"name": "likelihood"}
  },
  "versions": {"python": "3.11.13", "scoreflow": "0.1.0"},
  "devices": "1 x cpu in 1 process"
}
"""

# The same experiment today.
TODAY = {
    "checkpoint": "newest",
    "data": {
        "name": "digits", "dir": "", "path": "", "num_levels": 256, "image_size": 0, "test_fraction": 0.1, "flip": False,
        "centered": True, "dequantization": "uniform", "conditional": False, "binarized": False, "bits": 0,
    },
    "decoder": {"name": "none"},
    "dequantizer": {"name": "none"},
    "eval": {"dequantization": "uniform", "neighbors": 5, "rtols": (1e-4,)},
    "grid": {"name": "log_snr"},
    "init_from": "",
    "latent": {"name": "none"},
    "loss": {"name": "first_order"},
    "model": {
        "name": "unet", "channels": 16, "multipliers": (1, 4), "blocks": 1, "attention": (), "num_heads": 1,
        "dropout": 0.0, "remat": False, "dtype": "float32",
    },
    "penalty": {"name": "none"},
    "process": {"name": "vp_linear", "beta_min": 0.1, "beta_max": 20.0, "horizon": 1.0},
    "score": {"prediction": "v", "sigma_data": 1.0, "energy_power": 0, "mixed": False, "mixed_logit": -3.0},
    "seed": 0,
    "t_min": 1e-5,
    "terminal": {"name": "prior"},
    "sample_times": {"name": "importance"},
    "training": {
        "grad_accum": 1, "batch_size": 64, "best": (), "beta1": 0.9, "beta2": 0.999, "clip": 1.0, "ema_decay": 0.999,
        "eps": 1e-8, "fsdp": True, "label_dropout": 0.0, "learn": "all", "learning_rate": 0.002,
        "learning_rate_end": 0.0, "optimizer": "adamw", "schedule": "cosine", "skip": 0, "steps": 4000,
        "steps_per_dispatch": 1, "warmup": 100, "weight_decay": 0.0,
    },
    "vae": {"name": "none"},
    "weight": {"name": "likelihood"},
}  # fmt: skip


@pytest.fixture
def old(tmp_path):
    """The folder of a run of version 0.1.0."""
    (tmp_path / "config.json").write_text(OLD)
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    return tmp_path


def changed(section: str, **settings):
    """Today's settings with some others in a section."""
    return TODAY | {section: TODAY[section] | settings}


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_of_an_older_version_opens(old, resume):
    workdir.check(old, TODAY, resume=resume)
    workdir.record(old, TODAY, name="vp_digits")
    stored = json.loads((old / "config.json").read_text())
    assert "num_levels" in stored["config"]["data"] and stored["name"] == "vp_digits"  # today's names
    workdir.check(old, TODAY, resume=resume)
    workdir.check_same(old, TODAY, ("data.", "score.", "model.", "process.", "dequantizer."))


def test_differences_from_an_older_version_have_todays_names(old):
    with pytest.raises(UserError, match=r"data\.num_levels = 256, not 17"):
        workdir.check(old, changed("data", num_levels=17), resume=True)
    with pytest.raises(UserError, match=r"score\.energy_power = 0, not 2"):
        workdir.check(old, changed("score", energy_power=2), resume=False)
    with pytest.raises(UserError, match=r"training\.batch_size = 64, not 32"):
        workdir.check(old, changed("training", batch_size=32), resume=True)
    with pytest.raises(UserError, match=r"was trained with score\.prediction = 'v', not 'noise'"):
        workdir.check_same(old, changed("score", prediction="noise"), ("score.",))


def test_a_setting_that_the_stored_run_lacks_has_its_default(old):
    defaults = {"data.crop": (0, 4), "seed": 7}
    same, other = changed("data", crop=(0, 4)), changed("data", crop=(1, 4))
    workdir.check_same(old, same, ("data.",), defaults=defaults)
    workdir.check(old, same, resume=False, defaults=defaults)
    workdir.check(old, TODAY, resume=False, defaults=defaults)  # nor need today's settings be complete
    with pytest.raises(UserError, match=r"data\.crop = \(0, 4\), not \(1, 4\)"):
        workdir.check_same(old, other, ("data.",), defaults=defaults)
    with pytest.raises(UserError, match=r"data\.crop = \(0, 4\), not \(1, 4\)"):
        workdir.check(old, other, resume=True, defaults=defaults)
    with pytest.raises(UserError, match=r"data\.crop = None, not \(0, 4\)"):
        workdir.check(old, same, resume=True)
    with pytest.raises(UserError, match="seed = 0, not 7"):  # the default does not replace what was stored
        workdir.check(old, TODAY | {"seed": 7}, resume=False, defaults=defaults)


def test_numbers_that_may_be_lower(old):
    shorter, longer = changed("process", horizon=0.2), changed("process", horizon=2.0)
    workdir.check_same(old, shorter, ("process.",), at_most=("process.horizon",))
    with pytest.raises(UserError, match=r"process\.horizon = 1\.0, not 2\.0"):
        workdir.check_same(old, longer, ("process.",), at_most=("process.horizon",))


def test_a_free_folder_takes_any_run(tmp_path):
    assert workdir.stored_settings(tmp_path) == {}
    workdir.check(tmp_path, TODAY, resume=True, defaults={"seed": 7})
    workdir.record(tmp_path, TODAY)
    assert workdir.stored_settings(tmp_path)["model.multipliers"] == [1, 4]


def test_an_unreadable_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="unreadable; choose another --workdir"):
        workdir.stored_settings(tmp_path)


def test_a_process_that_cannot_see_the_folder_is_told_the_number(tmp_path, monkeypatch):
    """On a node with a disk of its own: the note that the first process has written is not there."""
    made = {"step": 8, "seed": 1}
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "8.json").write_text("{}")
    assert workdir.numbered(made, tmp_path / "first", "8").name == "8-2"
    assert workdir.numbered(made, tmp_path / "first", "8").name == "8-2"
    assert workdir.numbered({**made, "seed": 2}, tmp_path / "first", "8").name == "8-3"
    monkeypatch.setattr(parallel, "is_main", lambda: False)
    monkeypatch.setattr(parallel, "from_first", lambda array: np.array(2))
    monkeypatch.setattr(workdir, "_json", lambda path: pytest.fail(f"{path} is read in another process"))
    for file in ("", "eval.json"):
        assert workdir.numbered(made, tmp_path / "own", "8", file) == tmp_path / "own" / "8-2"
    assert not (tmp_path / "own").exists()


def test_a_note_that_cannot_be_read_again_ends_the_search(tmp_path, monkeypatch):
    """As on a file system that lags behind: what this process has written is its own."""
    monkeypatch.setattr(workdir, "_json", lambda path: None)
    names = [workdir.numbered({"seed": 1}, tmp_path, "8").name for _ in range(3)]
    assert names == ["8", "8-2", "8-3"]


def test_every_renamed_setting_is_translated():
    before = {
        "score.energy": "code", "weight.data_rms": 0.5, "penalty.law": "sphere", "penalty.part": 0.25,
        "terminal.levels": 2, "dequantiser.name": "couplings", "dequantiser.couplings": 4, "training.optimiser": "adam",
        "training.split_state": True, "sampling.inpaint": "centre", "data.dequantisation": "none", "seed": 3,
    }  # fmt: skip
    after = {
        "score.energy_power": -1, "weight.sigma_data": 0.5, "penalty.probe": "sphere", "penalty.fraction": 0.25,
        "terminal.resolutions": 2, "dequantizer.name": "couplings", "dequantizer.couplings": 4,
        "training.optimizer": "adam", "training.fsdp": True, "sampling.inpaint": "center",
        "data.dequantization": "none", "seed": 3,
    }  # fmt: skip
    assert renamed.translate(before) == after
    assert renamed.translate(after) == after
    for both in (before | after, after | before):  # an old name counts, beside today's
        assert renamed.translate(both | {"training.optimizer": "adamax"}) == after
    powers = [renamed.translate({"score.energy": name})["score.energy_power"] for name in ("none", "paper", "noise")]
    assert powers == [0, 1, 2]
