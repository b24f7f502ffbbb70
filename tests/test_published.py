"""Every published config trains, samples and is scored at tiny width, on archives in the data sets' own formats."""

import functools
import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from scoreflow import configure, draw, evaluate, train
from scoreflow.data import Dataset, Split, load
from scoreflow.experiment import INIT
from scoreflow.step import init_state
from tests import tiny
from tests.test_configs import VARIANTS, marked, shrink
from tests.test_data import make_archive  # noqa: F401  (a fixture)


@pytest.fixture(autouse=True)
def _allow_rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


def _trains_samples_and_is_scored(config: ConfigDict, name: str) -> None:
    """Two steps that move parameters, one sample as the data are stored, and a finite likelihood of test data."""
    experiment, options = configure.experiment(config, name), configure.train_options(config)
    state = init_state(experiment.init, options.optimizer, experiment.key(INIT))
    before, dispatch = jax.device_get(state.params), train.dispatch_of(experiment, options)
    for _, batch in train.batches_of(experiment, options, 0):
        state, metrics = dispatch(state, batch)
        assert np.isfinite(metrics["loss"]).all()
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, jax.device_get(state.params))
    assert state.step == 2 and max(jax.tree.leaves(moved)) > 0
    drawn = draw.make_draw(experiment, 4)(state.ema_params, jax.random.key(0), 1)
    assert drawn.x.dtype == np.uint8 and drawn.x.shape == (1, *experiment.data.shape)
    evaluation = configure.evaluation(config)
    context = evaluation.context(experiment, state.ema_params)
    metrics = evaluate.measure(context, evaluation.evaluators, only=("likelihood",)).metrics["likelihood"]
    assert np.isfinite(metrics["bits_per_dim" if experiment.space.bins else "nats"].value)
    assert not metrics["likelihood_failed"]


def _archive(config: ConfigDict, request) -> None:
    """An archive of the data set in its own format, or a folder of images, made by the test."""
    if config.data.name != "folder":
        config.data.dir = str(request.getfixturevalue("make_archive")(config.data.name)[0])
        return
    folder = request.getfixturevalue("tmp_path") / "images"
    folder.mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (12, 40, 36, 3)).astype(np.uint8)):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    config.data.update({"path": str(folder), "test_fraction": 0.4, "image_size": 32})


@pytest.mark.parametrize(
    "name",
    marked(
        [name for name in VARIANTS if re.match("published_images:.*(vp|ve|edm|pp)$", name)],
        "celeba64_(sub_vp|edm_ncsnpp)",
    ),
)
def test_every_published_image_model_trains_samples_and_is_scored(name, request):
    """At tiny width. The deep variants have more blocks of the same, and are these at this width."""
    config = shrink(tiny.load(tiny.ROOT / "configs" / "published_images.py", name.partition(":")[2]))
    config.model.channels = 4
    config.training.batch_size = 4
    config.eval.update({"num_test": 4, "batch_size": 4})
    _archive(config, request)
    _trains_samples_and_is_scored(config, name)


@pytest.mark.parametrize(
    "name",
    marked(
        [name for name in VARIANTS if re.match("published_(vae|latent):", name)],
        "(?<!vae:cifar10_balanced)(?<!latent:mnist)(?<!latent:celeba_last)$",
    ),
)
def test_every_published_latent_model_trains_samples_and_is_scored(name, request):
    """At tiny width, with an MLP as the prior's network."""
    stem, variant = name.split(":")
    config = shrink(tiny.load(tiny.ROOT / "configs" / f"{stem}.py", variant))
    config.data.image_size = 28 if config.data.name == "omniglot" else 0
    config.vae.update({"channels": 4, "per_scale": 1, "latents": 2, "cells": 1, "outer_cells": 1, "dtype": "float32"})
    config.vae.update({"scales": min(2, config.vae.scales), "multipliers": (1, 1)})
    config.model.update({"name": "mlp", "width": 8, "depth": 1})
    config.training.update({"batch_size": 4, "best": ()})
    config.eval.update({"num_test": 4, "batch_size": 4})
    config.init_from = "runs/not_read" if stem == "published_latent" else ""  # asked for, but read by `train` alone
    _archive(config, request)
    _trains_samples_and_is_scored(config, name)


PUBLISHED = {  # (data shape, latents under the prior) as tabled
    "mnist": ((28, 28, 1), (8, 8, 40)),
    "omniglot": ((28, 28, 1), (16, 16, 60)),
    "cifar10_nll": ((32, 32, 3), (16, 16, 180)),
    "celeba_quantitative": ((256, 256, 3), (32, 32, 160)),
}


def _images(name: str, *shape: int) -> Dataset:
    x = np.random.default_rng(0).integers(0, 256, (4, *shape)).astype(np.uint8)
    return Dataset(name, Split(x), Split(x), num_levels=256)


@pytest.mark.slow
@pytest.mark.parametrize("variant", PUBLISHED)
def test_published_latent_models_have_the_published_latents(variant, monkeypatch):
    """In full size, with noise for the data; nothing is initialized."""
    shape, latents = PUBLISHED[variant]
    config = tiny.load(tiny.ROOT / "configs" / "published_latent.py", variant)
    config.training.batch_size = 4
    monkeypatch.setattr(load, "load", functools.wraps(load.load)(lambda **settings: _images(variant, *shape)))
    experiment = configure.experiment(config, variant)
    assert experiment.space.shape == latents and experiment.data.shape == shape
