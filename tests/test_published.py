"""Every published config trains, samples and is scored at tiny width, on archives in the data sets' own formats."""

import functools
import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from scoreflow import configure, draw, evaluate, train
from scoreflow.dispatch import batches_of, dispatch_of
from scoreflow.experiment import INIT
from scoreflow.models import LATENT
from scoreflow.processes import sdes
from scoreflow.runs.errors import UserError
from scoreflow.samplers import grids
from scoreflow.samplers.adaptive import Adaptive
from scoreflow.step import init_state
from tests import tiny
from tests.test_configs import VARIANTS, marked, shrink
from tests.test_data import make_archive  # noqa: F401  (a fixture)
from tests.truth import gaussian_score


@pytest.fixture(autouse=True)
def _allow_rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


def _trains_samples_and_is_scored(config: ConfigDict, name: str) -> None:
    """Two steps that move parameters, one sample as the data are stored, and a finite likelihood of test data."""
    experiment = configure.experiment(config, name)
    options = configure.train_options(config, experiment)
    state = init_state(experiment.init, options.optimizer, experiment.key(INIT))
    before, dispatch = jax.device_get(state.params), dispatch_of(experiment, options)
    for _, batch in batches_of(experiment, options, 0):
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
        "cifar100|svhn|imagenet32_(sub_vp|ve|edm)|celeba64_(sub_vp|vp|ve|edm_ncsnpp)",
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
    config.data.image_size = 0
    config.vae.update({"channels": 4, "per_scale": 1, "latents": 2, "cells": 1, "outer_cells": 1, "dtype": "float32"})
    config.vae.update({"scales": min(2, config.vae.scales), "multipliers": (1, 1)})
    config.model.update({"name": "mlp", "width": 8, "depth": 1})
    config.training.update({"batch_size": 4, "best": ()})
    config.eval.update({"num_test": 4, "batch_size": 4})
    config.init_from = "runs/not_read" if stem == "published_latent" else ""  # asked for, but read by `train` alone
    _archive(config, request)
    _trains_samples_and_is_scored(config, name)


TABLE = {  # stages one and two of the published runs, by the columns of their table
    "mnist": {"process": "vp_linear", "t_min": 0.01, "weight": "likelihood", "algorithm": 1, "channels": 256, "levels": 2,
              "rate": 3e-4, "steps": 375_000, "batch_size": 128, "logit": -6.0, "drop": True, "penalties": (1e-2, 0.0)},
    "omniglot": {"process": "vp_linear", "t_min": 0.01, "weight": "likelihood", "algorithm": 1, "channels": 256, "levels": 3,
                 "rate": 3e-4, "steps": 285_000, "batch_size": 128, "logit": -6.0, "drop": True, "penalties": (1e-2, 1e-3)},
    "cifar10_balanced": {"process": "vp_linear", "t_min": 0.01, "weight": "noise", "algorithm": 3, "channels": 512,
                         "levels": 3, "rate": 1e-4, "steps": 366_000, "batch_size": 256, "logit": -3.0, "drop": False,
                         "penalties": (1e-2, 1e-2)},
    "cifar10_nll": {"process": "vp_geometric", "t_min": 0.0, "weight": "likelihood", "algorithm": 1, "channels": 512,
                    "levels": 3, "rate": 1e-4, "steps": 366_000, "batch_size": 256, "logit": -3.0, "drop": False,
                    "penalties": (1e-2, 1e-2)},
    "celeba_quantitative": {"process": "vp_linear", "t_min": 0.01, "weight": "diffusion", "algorithm": 2, "channels": 256,
                            "levels": 4, "rate": 1e-4, "steps": 422_000, "batch_size": 64, "logit": -6.0, "drop": True,
                            "penalties": (1e-1, 1e-2)},
    "celeba_qualitative": {"process": "vp_geometric", "t_min": 0.0, "weight": "diffusion", "algorithm": 2, "channels": 256,
                           "levels": 5, "rate": 1e-4, "steps": 422_000, "batch_size": 64, "logit": -6.0, "drop": True,
                           "penalties": (1e-1, 1e-2)},
    "celeba_last": {"process": "vp_linear", "t_min": 0.01, "weight": "diffusion", "algorithm": None, "channels": 320,
                    "levels": 5, "rate": 6e-5, "steps": 422_000, "batch_size": 96, "logit": -6.0, "drop": True,
                    "penalties": (None, None)},
}  # fmt: skip
TABLE["cifar10_fid"] = TABLE["cifar10_balanced"]
FIRST = {  # epochs, batch, share of the annealing, largest coefficient, penalty; examples of the training set
    "mnist": (200, 200, 1.0, 0.7, 1e-2, 60_000), "omniglot": (200, 128, 1.0, 1.0, 1e-2, 24_345),
    "cifar10_balanced": (600, 256, 0.5, 1.0, 1e-2, 50_000), "cifar10_fid": (400, 256, 1.0, 0.7, 1e-2, 50_000),
    "cifar10_nll": (400, 256, 1.0, 0.7, 1e-2, 50_000), "celeba_quantitative": (200, 64, 1.0, 1.0, 3e-2, 27_000),
    "celeba_qualitative": (200, 64, 1.0, 1.0, 3e-2, 27_000),
}  # fmt: skip


@pytest.mark.parametrize("variant", TABLE)
def test_published_latent_models_have_the_published_settings(variant):
    """Of stage two, and where its path ends: the decoder is given a state without noise."""
    config = configure.resolve(tiny.load(tiny.ROOT / "configs" / "published_latent.py", variant))
    latent = config.latent
    ours = {
        "process": config.process.name, "t_min": config.t_min, "weight": config.weight.name,
        "algorithm": latent.get("algorithm"), "channels": config.model.channels, "levels": len(config.model.multipliers),
        "rate": config.training.learning_rate, "steps": config.training.steps, "batch_size": config.training.batch_size,
        "logit": config.score.mixed_logit, "drop": latent.drop_inactive,
        "penalties": (latent.get("spectral_weight"), latent.get("spectral_score")),
    }  # fmt: skip
    assert ours == TABLE[variant]
    assert config.model.blocks == 8 and config.model.dropout == 0.2 and config.training.ema_decay == 0.9999
    end = 1e-6 if variant.startswith("cifar10") else 1e-5
    assert config.eval.t_min == config.sampling.t_min == end and not config.sampler.denoise
    process = configure.process(config)
    left = float(process.sigma(end) / process.alpha(end))
    assert left < 0.006  # the geometric process keeps sqrt(3e-5) at t = 0
    assert config.sampler.rtol == (1e-2 if variant == "celeba_quantitative" else 1e-5)
    clock = "log_snr" if config.process.name == "vp_geometric" else "time"
    assert config.eval.clock == config.sampler.clock == clock


@pytest.mark.parametrize("variant", FIRST)
def test_published_vaes_have_the_published_settings(variant):
    """Steps are epochs times batches, rounded down to a hundred."""
    config = configure.resolve(tiny.load(tiny.ROOT / "configs" / "published_vae.py", variant))
    epochs, batch, share, top, penalty, examples = FIRST[variant]
    assert config.training.batch_size == batch
    assert abs(config.training.steps - epochs * (examples // batch)) < 0.01 * config.training.steps
    assert config.latent.ramp == pytest.approx(share * config.training.steps)
    assert (config.latent.coefficient_max, config.latent.spectral_weight) == (top, penalty)
    assert config.data.name == {"mnist": "mnist", "omniglot": "omniglot_28", "celeba": "folder"}.get(
        variant.split("_")[0], "cifar10"
    )


# By the columns of the same table. Epochs of warm-up, and training examples; the largest rates of the VAE and of the
# prior; whether the coefficient of the divergence grows from 0.7 to 1, which it does over a tenth of the steps.
REST = {
    "mnist": ("normal_likelihood", 20, 60_000, 1e-4, 3e-4, True),
    "omniglot": ("normal_likelihood", 20, 24_345, 1e-4, 3e-4, True),
    "cifar10_balanced": ("normal_unweighted", 5, 50_000, 1e-4, 1e-4, False),
    "cifar10_fid": ("normal_unweighted", 5, 50_000, 1e-4, 1e-4, True),
    "cifar10_nll": ("uniform", 5, 50_000, 1e-4, 1e-4, True),
    "celeba_quantitative": ("variance_uniform", 20, 27_000, 1e-4, 1e-4, False),
    "celeba_qualitative": ("variance_uniform", 20, 27_000, 8e-5, 1e-4, True),
    "celeba_last": ("variance_uniform", 20, 27_000, None, 6e-5, False),
}


@pytest.mark.parametrize("variant", REST)
def test_published_latent_models_learn_at_the_published_rates(variant):
    """Both warmed up over whole epochs; then the prior's stays, and the VAE's falls to 1e-5 along a cosine."""
    config = configure.resolve(tiny.load(tiny.ROOT / "configs" / "published_latent.py", variant))
    times, epochs, examples, rate_vae, rate, grows = REST[variant]
    training, latent = config.training, config.latent
    assert config.sample_times.name == times
    assert abs(training.warmup - epochs * examples / training.batch_size) < 0.5 * epochs
    assert (training.learning_rate, training.schedule, training.clip) == (rate, "constant", 0.0)
    assert (training.eps, training.weight_decay) == (1e-4, 3e-4)
    if rate_vae is None:  # the VAE stays as it is
        assert latent.name == "frozen" and "learning_rate" not in latent
        return
    assert (latent.learning_rate, latent.learning_rate_end, latent.eps, latent.weight_decay) == (
        rate_vae,
        1e-5,
        1e-3,
        3e-4,
    )
    if grows:
        assert (latent.coefficient_min, latent.coefficient_max, latent.hold) == (0.7, 1.0, 0)
        assert latent.ramp == pytest.approx(training.steps / 10)
    else:
        assert latent.coefficient_min == latent.coefficient_max == 1.0


@pytest.mark.parametrize("variant", FIRST)
def test_published_vaes_learn_at_the_published_rates(variant):
    """Adamax from 1e-2 to 1e-4 along a cosine after five epochs; the coefficient from 1e-4 after a ten-thousandth."""
    config = configure.resolve(tiny.load(tiny.ROOT / "configs" / "published_vae.py", variant))
    training, latent, epochs = config.training, config.latent, FIRST[variant][0]
    assert (training.optimizer, training.learning_rate, training.learning_rate_end) == ("adamax", 1e-2, 1e-4)
    assert (training.schedule, training.eps, training.weight_decay, training.clip) == ("cosine", 1e-3, 3e-4, 0.0)
    assert training.warmup * epochs == 5 * training.steps
    assert (latent.coefficient_min, latent.balance) == (1e-4, True)
    assert abs(latent.hold - 1e-4 * training.steps) < 1


@pytest.mark.slow
def test_the_last_stage_takes_the_vae_alone(tmp_path):
    """Its score network is wider than that of the run it begins with, and has fresh parameters."""
    vae = {"name": "mlp", "width": 8, "depth": 1, "latents": 2}
    latent = {"vae": vae, "decoder": {"name": "categorical"}, "training__pictures": False}
    stages = [
        ("one", {"latent": {"name": "alone"}}),
        ("two", {"latent": {"name": "joint"}, "init_from": str(tmp_path / "one")}),
        ("three", {"latent": {"name": "frozen"}, "model__width": 24, "init_from": str(tmp_path / "two")}),
    ]
    tiny.trained(tmp_path / "plain")
    trees = {}
    for name, changes in stages:
        config = tiny.digits(**latent, **changes)
        experiment = configure.experiment(config, name)
        options = configure.train_options(config, experiment)
        if name == "two":
            config.init_from, config.init_parts = str(tmp_path / "plain"), "vae"
            wrong = configure.train_options(config, experiment)
            wrong = wrong._replace(warm_start=wrong.warm_start._replace(same=()))
            with pytest.raises(UserError, match="plain has no parameters of vae to begin with"):
                train.train(experiment, wrong, tmp_path / "wrong")
        if name == "three":
            with pytest.raises(UserError, match="does not fit this config"):
                train.train(experiment, options, tmp_path / "wrong")
            config.init_parts = "vae"
            options = configure.train_options(config, experiment)
        state = train.train(experiment, options, tmp_path / name)
        trees[name] = jax.device_get(state.ema_params)
    jax.tree.map(np.testing.assert_array_equal, trees["three"][LATENT], trees["two"][LATENT])
    assert not (tmp_path / "wrong").exists()


def test_the_adaptive_sampler_ends_in_the_same_place_by_either_clock():
    """And where the exact flow of a Gaussian ends: each direction shrinks by the ratio of standard deviations."""
    process = sdes.vp_geometric()
    score = gaussian_score(process, np.zeros(3), np.array([0.3, 1.0, 2.0]))
    x, grid = 1.0 * jax.random.normal(jax.random.key(0), (4, 3)), grids.log_snr(process, 1, t_min=0.0)
    runs = {}
    for clock in ("time", "log_snr"):
        run = jax.jit(functools.partial(Adaptive(1e-5, 1e-5, clock=clock), process, score, denoise=False))
        runs[clock] = run(jax.random.key(1), x, grid)
    var = np.array([0.3, 1.0, 2.0])
    spread = lambda t: np.sqrt(float(process.alpha(t)) ** 2 * var + float(process.variance(t)))
    for run in runs.values():
        np.testing.assert_allclose(run.x, np.asarray(x) * spread(0.0) / spread(1.0), atol=1e-3)
