"""Configs and folders small enough to train in seconds."""

import importlib.util
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

ROOT = Path(__file__).parent.parent


def module(path: Path):
    """A file under configs/."""
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def load(path: Path, *variant: str) -> ConfigDict:
    """The config of a file under configs/, or of a variant in it."""
    return module(path).get_config(*variant)


def digits(**changes) -> ConfigDict:
    """Digits with a tiny MLP, 8 steps.

    `changes` are dotted settings with __ for the dot, of any value and any name; a dict updates a section, whose `name`
    comes first and brings the defaults of that choice.
    """
    config = load(ROOT / "configs" / "vp_digits.py")
    config.model.update({"name": "mlp", "width": 16, "depth": 1, "dropout": 0.1})
    config.training.update(
        {"steps": 8, "batch_size": 16, "warmup": 2, "log_every": 2, "checkpoint_every": 2, "validate_every": 4}
    )
    config.sampling.update({"num": 8, "batch_size": 8, "steps": 4})
    config.eval.update({"draws": 2, "num_test": 12, "batch_size": 8, "check": 4, "baseline": False, "num_samples": 100})
    config.eval.solver = "adaptive"  # whose one program compiles faster
    config.eval.features = "pixels"
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        target = config[section] if section else config
        with target.unlocked(), target.ignore_type():
            if isinstance(value, dict | ConfigDict):
                target[key].update(value)
            else:
                target[key] = value
    return config


def trained(folder: Path, **changes) -> tuple[ConfigDict, Any]:
    """Trains a tiny run in a folder, without pictures; its config and experiment."""
    from scoreflow import configure, train

    config = digits(training__pictures=False, **changes)
    experiment = configure.experiment(config, "tiny")
    train.train(experiment, configure.train_options(config, experiment), folder)
    return config, experiment
