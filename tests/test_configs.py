"""Every config file builds, trains two steps, samples and is evaluated, at tiny width; and bad settings are refused."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from scoreflow import configure, evaluate, likelihood, sample, train
from scoreflow.configure import checks
from scoreflow.configure.catalogue import CATALOGUES
from scoreflow.data import archives
from scoreflow.experiment import load_params
from scoreflow.runs.errors import UserError
from tests import tiny
from tests.test_data import make_archive  # noqa: F401  (a fixture)

CONFIGS = sorted(path.stem for path in (tiny.ROOT / "configs").glob("*.py") if path.stem != "default")
VARIANTS = [
    f"{name}:{variant}"
    for name in CONFIGS
    for variant in getattr(tiny.module(tiny.ROOT / "configs" / f"{name}.py"), "VARIANTS", ())
]


@pytest.fixture(autouse=True)
def _allow_rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


def marked(names, by_hand: str):
    """Parameters for the slow tests; those that match are like others among them, and run by hand (pytest -m full)."""
    marks = {True: pytest.mark.full, False: pytest.mark.slow}
    return [pytest.param(name, marks=marks[re.search(by_hand, name) is not None]) for name in names]


def shrink(config: ConfigDict) -> ConfigDict:
    """The same experiment at a size that takes seconds: fewer of everything, nothing of another kind."""
    if "multipliers" in config.model:
        config.model.update({"channels": 8, "multipliers": (1,) * min(2, len(config.model.multipliers)), "blocks": 1})
        config.model.attention = ()
        if "num_heads" in config.model:
            config.model.num_heads = 1
    else:
        config.model.update({"width": 16, "depth": 1})
    k = min(2, config.training.steps_per_dispatch)
    config.training.update({"steps": 2, "batch_size": 8, "warmup": 1, "steps_per_dispatch": k, "grad_accum": 1})
    config.training.update({"log_every": 2, "checkpoint_every": 2, "validate_every": 2, "sample_every": 0})
    config.model.dtype = "float32"
    config.init_from = ""  # the other run is tested with training
    config.data.image_size = 16 if config.data.name in archives.ARCHIVES else 0
    config.sampling.update({"num": 8, "batch_size": 8, "steps": 3})
    config.eval.update({"draws": 1, "num_test": 8, "batch_size": 8, "check": 4, "num_samples": 100, "baseline": False})
    config.eval.update({"solver": "adaptive", "rtol": 1e-2, "atol": 1e-2, "features": "pixels", "max_steps": 200})
    return config


@pytest.mark.parametrize(
    "name",
    marked(
        [
            name
            for name in CONFIGS  # the others are variants of these, or tested with what they are about
            if not re.search("_(processes|dequantizer|bridge|conservative|orders|velocity|images|vae|latent)$", name)
        ],
        "vp_digits$|^fashion",
    ),
)
def test_every_config_works_from_end_to_end(name, tmp_path, request):
    config = shrink(tiny.load(tiny.ROOT / "configs" / f"{name}.py"))
    if config.data.name in archives.ARCHIVES:
        data_dir, _ = request.getfixturevalue("make_archive")(config.data.name)
        config.data.dir = str(data_dir)
    _end_to_end(config, name, tmp_path)


@pytest.mark.parametrize(
    "name",
    marked(
        [name for name in VARIANTS if not re.match(".*_bridge|.*_(images|vae|latent):", name)],
        "^fashion|^cifar10.*:(?!vp_linear)",
    ),
)
def test_every_process_gives_a_loss_a_sample_and_a_density(name, request):
    """All finite, as configured, with an MLP, since the network is the same for all; CIFAR-10 from an archive."""
    stem, variant = name.split(":")
    config = shrink(tiny.load(tiny.ROOT / "configs" / f"{stem}.py", variant))
    if config.data.name in archives.ARCHIVES:
        config.data.dir = str(request.getfixturevalue("make_archive")(config.data.name)[0])
    config.model.update({"name": "mlp", "width": 8, "depth": 1})
    experiment = configure.experiment(config, name)
    params = experiment.init(jax.random.key(0))
    batch = {"x": experiment.data.train.x[:8]}
    x_init = experiment.model.terminal(params).sample(jax.random.key(2), (2, *experiment.space.shape))

    @jax.jit
    def everything(params):
        loss = lambda params: experiment.objective(params, jax.random.key(1), batch, train=True)[0]
        score, x = experiment.model.score(params), experiment.space.encode(params, jax.random.key(4), batch["x"][:2])
        draw = experiment.sampler.draw(score, jax.random.key(3), x_init, None).x
        options = {"t_min": experiment.model.t_min, "rtol": 1e-2, "atol": 1e-2}
        terminal = experiment.model.terminal(params)
        density = likelihood.log_prob(experiment.model.process, score, terminal, jax.random.key(5), x, **options).logp
        return jax.value_and_grad(loss)(params), draw, density

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(everything(params)))


@pytest.mark.slow
def test_a_variant_works_from_end_to_end(tmp_path):
    config = tiny.load(tiny.ROOT / "configs" / "digits_processes.py", "ve_power")
    config.model.update({"name": "mlp", "width": 16, "depth": 1})
    _end_to_end(shrink(config), "configs/digits_processes.py:ve_power", tmp_path)


@pytest.mark.slow
def test_a_constrained_score_works_from_end_to_end(tmp_path):
    config = tiny.digits(score__energy_power=2, eval__draws=1, eval__rtol=1e-2, eval__atol=1e-2)
    _end_to_end(config, "configs/vp_digits.py", tmp_path)
    experiment = configure.experiment(config, "energy")
    params = load_params(experiment, tmp_path / "run", 8)
    x, t = jax.random.normal(jax.random.key(0), (3, 8, 8, 1)), jnp.array([0.1, 0.5, 0.9])
    slope = jax.jit(jax.grad(lambda x: experiment.model.energy(params)(x, t).sum()))(x)
    np.testing.assert_allclose(experiment.model.score(params)(x, t), -slope, rtol=1e-4, atol=1e-5)


def _end_to_end(config, name, tmp_path):
    experiment = configure.experiment(config, name)
    train.train(experiment, configure.train_options(config, experiment), tmp_path / "run")
    sample.sample(experiment, configure.sample_options(config), tmp_path / "run")
    results = evaluate.evaluate(experiment, configure.evaluation(config, tmp_path), tmp_path / "run")
    unit = "bits_per_dim" if experiment.data.num_levels else "nats"
    assert np.isfinite(results["likelihood"][unit].value)
    assert results["likelihood"]["likelihood_failed"] == 0
    assert results["samples"]["model"]["samples"] == 100


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_is_complete_and_has_its_command(name):
    path = tiny.ROOT / "configs" / f"{name}.py"
    configure.check(tiny.load(path))
    assert f"python main.py --config=configs/{name}.py" in path.read_text()


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_complete_and_is_named(name):
    stem, variant = name.split(":")
    path = tiny.ROOT / "configs" / f"{stem}.py"
    config = tiny.load(path, variant)
    configure.check(config)
    process = configure.process(config)
    if config.latent.name != "none":  # latents have no levels
        return
    # grids and training begin where the process has as little noise as it starts with, or less than a level
    assert float(process.sigma(config.t_min)) < max(1.02 * float(process.sigma(0.0)), 2 / 256)
    words = variant.split("_", 1) if "<data>_<model>" in tiny.module(path).__doc__ else [variant]
    assert all(re.search(rf"\b{word}\b", tiny.module(path).__doc__) for word in words)


def test_an_unknown_variant_lists_the_known_ones():
    with pytest.raises(ValueError, match="ve_quadratic must be one of vp_linear, vp_constant"):
        tiny.load(tiny.ROOT / "configs" / "digits_processes.py", "ve_quadratic")


LATENT = {
    "vae": {"name": "mlp", "width": 8, "depth": 1, "latents": 2, "dtype": "float32"},
    "decoder": {"name": "categorical"},
    "latent": {"name": "alone"},
}
# Each row: a change to a good config, and what the one line must say.
BAD = [
    ({"seed": -1}, "seed = -1 must be a whole number from 0 to below 2**32"),
    ({"t_min": -1.0}, "t_min = -1.0 must be a number, 0 or above"),
    ({"t_min": 0.0}, "t_min = 0.0 is so small that vp_linear has no noise there in float32; choose a later time"),
    ({"sampling__t_min": 0.0}, "sampling.t_min = 0.0 is so small that vp_linear has no noise there in float32"),
    ({"init_parts": "vae"}, "init_parts = vae goes with init_from and a VAE: choose latent.name"),
    ({"t_min": 2.0}, "t_min = 2.0 must be below process.horizon = 1.0"),
    (
        {"eval__bound_times": 5, "eval__dequantization": "truncated_normal"},
        "eval.bound_times = 5 needs data at t = 0, and eval.dequantization = truncated_normal makes them at t_min",
    ),
    ({"loss": {"name": "high_order", "order": 4}}, "loss.order = 4 must be 2 or 3"),
    ({"loss": {"name": "high_order", "order": 3, "method": "trace"}}, "loss.method = trace has no order 3"),
    ({"dequantizer": {"name": "couplings"}}, "is trained on a finished score model: set init_from"),
    ({"dequantizer": {"name": "couplings"}, "init_from": "runs/a", "data__name": "rings"},
     "dequantizer.name = couplings needs images of integer levels, and rings has none"),
    ({"eval__dequantization": "variational"}, "eval.dequantization = variational needs a flow"),
    (
        {"eval__diagnose": 5, "eval__dequantization": "truncated_normal"},
        "eval.diagnose = 5 needs data at t = 0, and eval.dequantization = truncated_normal makes them at t_min",
    ),
    ({"process": {"name": "straight", "horizon": 1.0}}, "process.horizon = 1.0 must be a number between 0"),
    ({"loss": {"name": "high_order", "power4": 1}}, "loss.power4 is not a known setting; the nearest are loss.power2, loss.power3, loss.power2_trace"),
    ({"sample_times__name": "normal_unweighted", "process__name": "ve_linear"},
     "sample_times.name = normal_unweighted has a closed form for process.name = vp_linear alone, not for ve_linear"),
    ({"terminal__name": "mixture", "dequantizer__name": "couplings", "init_from": "runs/a"},
     "terminal.name = mixture and dequantizer.name = couplings need runs of their own"),
    ({"training__learn": "terminal"}, "training.learn = terminal needs init_from"),
    ({"training__steps": 0, "training__warmup": 0}, "training.steps = 0 must be above 0"),
    ({"eval__horizons": (0.5, 2.0)}, "eval.horizons = (0.5, 2.0) must lie above t_min = 1e-05"),
    ({"eval__score_error": 5}, "eval.score_error = 5 needs data whose density under noise is known: mixture"),
    ({"training__skip": -1}, "training.skip = -1 must be a whole number, 0 or above"),
    ({"eval__t_min": 1.0}, "eval.t_min = 1.0 must be below process.horizon"),
    ({"training__best": ("frechet",), "eval__num_samples": 0}, "training.best = frechet measures samples"),
    ({"sampling__t_min": 1.5}, "sampling.t_min = 1.5 must be below process.horizon"),
    ({"nonsense": 1}, "nonsense is not a known setting; the nearest are "),
    ({"training__lerning_rate": 1.0}, "training.lerning_rate is not a known setting; the nearest are training.learning_rate, training.learning_rate_end"),
    ({"training__learning_rate": "fast"}, "training.learning_rate = 'fast' must be a number above 0"),
    ({"training__learning_rate": float("nan")}, "training.learning_rate = nan must be a number above 0"),
    ({"training__steps": 2.5}, "training.steps = 2.5 must be a whole number"),
    ({"training__steps": True}, "training.steps = True must be a whole number"),
    ({"training__batch_size": 0}, "training.batch_size = 0 must be a whole number, 1 or above"),
    ({"training__accumulate": 3}, "training.grad_accum = 3 must divide training.batch_size = 16"),
    ({"training__steps_per_dispatch": 3}, "training.log_every = 2 must be a multiple of training.steps_per_dispatch = 3"),
    ({"training__checkpoint_every": 3}, "training.checkpoint_every = 3 must be a multiple of training.log_every = 2"),
    ({"training__warmup": 8}, "training.warmup = 8 must be below training.steps = 8"),
    ({"training__optimizer": "sgd"}, "training.optimizer = 'sgd' must be one of adam, adamw"),
    ({"training__schedule": "linear"}, "training.schedule = 'linear' must be one of cosine, constant"),
    ({"training__ema_decay": 1.0}, "training.ema_decay = 1.0 must be a number from 0 to below 1"),
    ({"sampling__label": 3}, "sampling.label = 3: the network knows no classes; train it with data.conditional = True"),
    ({"process__name": "vp"}, "process.name = 'vp' must be one of vp_linear, vp_constant, vp_power"),
    ({"process__sigma_min": 0.1}, 'process.sigma_min: vp_linear has no setting "sigma_min"; ve_geometric, ve_constant, ve_linear, ve_power have'),
    ({"process__beta_max": 0.01}, "process.beta_max = 0.01 must not be below beta_min = 0.1"),
    ({"process": {"name": "vp_cosine", "offset": 0.008, "horizon": 1.0}},
     "process.horizon = 1.0 must be a number between 0 and 1, where alpha reaches 0"),
    ({"process": {"name": "theory_vp_exp", "b": 100.0}}, "process.horizon = 1.0 leaves theory_vp_exp no signal"),
    ({"process": {"name": "vp_geometric", "variance_min": 0.5, "variance_max": 0.1, "horizon": 1.0}},
     "process.variance_max = 0.1 must be above variance_min = 0.5"),
    ({"process": {"name": "vp_geometric", "variance_min": 0.1, "variance_max": 1.5, "horizon": 1.0}},
     "process.variance_max = 1.5 must be a number between 0 and 1"),
    ({"plan__steps": ()}, "plan.steps = () must be a tuple of whole numbers above 0"),
    ({"process__horizon": -1.0}, "process.horizon = -1.0 must be a number above 0"),
    ({"process": {"name": "ve_geometric", "sigma_min": 2.0, "sigma_max": 1.0, "horizon": 1.0}},
     "process.sigma_max = 1.0 must be above sigma_min = 2.0"),
    ({"process": 3}, "process = 3: process is a section; set process.name"),
    ({"score__prediction": "epsilon"}, "score.prediction = 'epsilon' must be one of noise, x0, v, velocity, flow, score, edm"),
    ({"model__name": "transformer"}, "model.name = 'transformer' must be one of mlp, unet"),
    ({"model__width": 0}, "model.width = 0 must be a whole number, 1 or above"),
    ({"model__dropout": 1.0}, "model.dropout = 1.0 must be a number from 0 to below 1"),
    ({"model__dtype": "float16"}, "model.dtype = 'float16' must be one of float32, bfloat16"),
    ({"weight__name": "vdm"}, "weight.name = 'vdm' must be one of"),
    ({"sample_times": {"name": "log_normal", "std": 0.0}}, "sample_times.std = 0.0 must be a number above 0"),
    ({"grid__name": "quadratic"}, "grid.name = 'quadratic' must be one of uniform, log_snr, bell, karras"),
    ({"sampler__name": "ddpm"}, "sampler.name = 'ddpm' must be one of"),
    ({"sampling__inpaint": "top"}, "sampling.inpaint = 'top' must be one of none, bottom, right, center"),
    ({"latent": {"name": "alone"}}, "latent.name = alone, vae.name = none, decoder.name = none: choose all three"),
    ({"data__binarized": True}, "data.binarized and data.bits are for a decoder's data"),
    ({**LATENT, "latent": {"name": "joint"}}, "latent.name = joint begins with a finished VAE: set init_from"),
    ({**LATENT, "latent": {"name": "joint"}, "init_from": "a", "weight": {"name": "noise"}},
     "weight.name = noise: latent.algorithm = 1 is the bound itself"),
    ({**LATENT, "latent": {"name": "joint"}, "init_from": "a", "penalty": {"name": "quasi_conservative"}},
     "penalty.name = quasi_conservative goes with latent.name = frozen, not joint"),
    ({**LATENT, "latent": {"name": "joint", "algorithm": 4}, "init_from": "a"}, "latent.algorithm = 4 must be one of 1, 2, 3"),
    ({**LATENT, "latent": {"name": "frozen", "drop_inactive": True}, "init_from": "a"}, "needs score.mixed = True"),
    ({**LATENT, "score__mixed": True}, "score.mixed = True needs a score network, and latent.name = alone has none"),
    ({**LATENT, "decoder": {"name": "bernoulli"}}, "decoder.name = bernoulli is for 2 levels, and digits has 17"),
    ({**LATENT, "data__binarized": True}, "data.binarized = True goes with decoder.name = bernoulli"),
    ({**LATENT, "data__bits": 5}, "data.bits = 5 is more than the 17 levels of digits"),
    ({**LATENT, "data__name": "rings"}, "vae.name = mlp models integer levels, and rings has none"),
    ({**LATENT, "vae": {"name": "conv", "channels": 4, "multipliers": (1, 1, 1, 1, 1), "blocks": 1, "latents": 2, "dtype": "float32"}},
     "vae.name = conv with 5 resolutions needs images whose sides 16 divides"),
    ({**LATENT, "sampling__inpaint": "right"}, "sampling.inpaint = right is for data space"),
    ({"checkpoint": "best"}, "checkpoint = 'best' must be one of newest, validation, frechet"),
    ({"training__best": ("loss",)}, "training.best = ('loss',) must be a tuple of measures: validation, frechet"),
    ({"sampling__guidance": 2.0}, "sampling.guidance = 2.0 needs data.conditional = True"),
    ({"data__conditional": True, "sampling__guidance": 2.0}, "needs a network that also knows unlabeled data"),
    ({"sampling__label": 10}, "sampling.label = 10: digits has 10 classes"),
    ({"eval__dequantization": ""}, "eval.dequantization = '': the density of integer data depends on it"),
    ({"eval__dequantization": "none"}, "eval.dequantization = 'none': the density of integer data depends on it"),
    ({"eval__divergence": "skilling"}, "eval.divergence = 'skilling' must be one of hutchinson, exact"),
    ({"eval__rtol": 0.0}, "eval.rtol = 0.0 must be a number above 0"),
    ({"data__name": "imagenet"}, "data.name = 'imagenet' must be one of digits"),
    ({"data__name": "arrays"}, "data.path is empty"),
    ({"data__name": "arrays", "data__path": "nowhere.npy"}, "data.path = nowhere.npy: there is no such file"),
    ({"data__name": "folder", "data__path": "nowhere"}, "data.path = nowhere: there is no such file or folder"),
    ({"data__name": "rings", "data__conditional": True}, "data.conditional = True, but rings has no labels"),
    ({"data__name": "rings", "data__flip": True}, "data.flip = True needs images"),
    ({"data__name": "rings", "eval__features": "digits"}, "eval.features = digits needs labeled images"),
    ({"data__name": "rings", "eval__features": "classifier"}, "eval.features = classifier needs labeled images"),
    ({"data__name": "rings", "eval__features": "inception"}, "eval.features = inception needs images of 1 or 3 channels"),
    ({"data__name": "rings", "sampling__inpaint": "right"}, "sampling.inpaint = right needs images"),
]  # fmt: skip


@pytest.mark.parametrize("change, words", BAD, ids=[words[:40] for _, words in BAD])
def test_bad_settings_get_one_clear_line(change, words):
    with pytest.raises(UserError) as caught:
        configure.experiment(tiny.digits(**change), "bad")
    message = str(caught.value)
    assert words in message and "\n" not in message


@pytest.mark.parametrize("features, refused", [("digits", False), ("classifier", True)])
def test_vectors_of_levels_have_features_of_a_perceptron_and_not_of_convolutions(features, refused):
    config = configure.resolve(tiny.digits(eval__features=features))
    images = configure.dataset(config)
    flat = lambda split: split._replace(x=split.x.reshape(len(split.x), -1))
    data = images._replace(train=flat(images.train), test=flat(images.test))
    said = [words for bad, words in checks.with_data(config, data) if bad and "eval.features" in words]
    assert bool(said) == refused and not any(
        bad and "features" in words for bad, words in checks.with_data(config, images)
    )


def test_a_unet_needs_sides_it_can_halve():
    unet = {"name": "unet", "channels": 8, "multipliers": (1, 1, 1, 1, 1), "attention": (), "num_heads": 1}
    with pytest.raises(UserError, match="needs images whose sides 16 divides; digits has examples of shape"):
        configure.experiment(tiny.digits(model=unet), "bad")
    with pytest.raises(UserError, match="model.num_heads = 3 must divide"):
        configure.experiment(tiny.digits(model={**unet, "multipliers": (1, 2), "num_heads": 3}), "bad")


def test_a_config_need_not_be_complete():
    """What it leaves out has its default, of the choice that is made."""
    partly = ConfigDict({"seed": 3, "process": {"name": "vp_power", "beta_max": 9.0}, "training": {"steps": 7}})
    wanted = configure.resolve(
        configure.defaults(), {"seed": "3", "process.name": "vp_power", "process.beta_max": "9", "training.steps": "7"}
    )
    assert configure.resolve(partly) == wanted and wanted.process.rho == 5.0
    assert configure.resolve(ConfigDict()) == configure.resolve(configure.defaults())


def test_an_old_name_in_a_config_file_counts_and_not_todays_default_beside_it():
    config = tiny.digits(training__accumulate=4, score__energy="noise")
    resolved = configure.resolve(config)
    assert resolved.training.grad_accum == 4 and resolved.score.energy_power == 2


# A value of each setting that differs from its default.
OTHERS = {
    "horizon": 0.9, "beta_min": 0.2, "beta_max": 15.0, "rho": 4.0, "offset": 0.01, "variance_min": 1e-4,
    "variance_max": 0.99, "sigma_min": 0.02, "sigma_max": 40.0, "v0": 0.1, "al": 1.5, "si": 1.2, "a": 1.5, "b": 1.5,
    "c": 1.5, "k": 0.5, "predictor": "ancestral", "corrector_steps": 2, "snr": 0.1, "rtol": 1e-3, "atol": 1e-3,
    "max_steps": 100, "denoise": False, "gamma": 4.0, "bias": 0.5, "mean": 0.0, "std": 1.0, "sigma_data": 0.8, "cells": 256,
    "clock": "log_snr", "order": 3, "corrector": True, "center": 1.0, "width": 2.0, "floor": 0.5,
}  # fmt: skip
BUILT = [  # those of the theory are the same classes with other letters
    pytest.param(section, row, marks=pytest.mark.full if row.startswith("theory_") else pytest.mark.slow)
    for section in ("process", "weight", "sample_times", "grid", "sampler")
    for row in CATALOGUES[section].rows
]


@pytest.mark.parametrize("section, row", BUILT)
def test_every_choice_gives_a_loss_and_samples(section, row):
    """By its name alone, with the defaults; and with another value of each of its settings."""
    names = CATALOGUES[section].settings(row)
    assert names.keys() <= OTHERS.keys() and all(OTHERS[name] != setting.default for name, setting in names.items())
    for chosen in [{}, {name: OTHERS[name] for name in names}][: 1 + bool(names)]:
        experiment = configure.experiment(tiny.digits(**{section: {"name": row, **chosen}}), "row")
        params = jax.jit(experiment.init)(jax.random.key(0))
        batch = {"x": experiment.data.train.x[:4]}
        if section in ("process", "weight", "sample_times"):
            loss = jax.jit(functools.partial(experiment.objective, train=True))(params, jax.random.key(0), batch)[0]
            assert np.isfinite(loss)
        if section in ("process", "grid", "sampler"):

            @jax.jit
            def draw(params, e=experiment):
                x_init = e.model.terminal(params).sample(jax.random.key(1), (2, 8, 8, 1))
                return e.sampler.draw(e.model.score(params), jax.random.key(2), x_init).x

            assert np.isfinite(draw(params)).all()


@pytest.mark.parametrize("variant", ["small", "large"])
def test_own_images_need_no_more_than_their_path(variant, tmp_path):
    """The config as it is builds, and its network fits the images; a narrower one begins with v = 0, so the score -x."""
    rng = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (70, 80, 3), np.uint8)).save(tmp_path / f"{i}.png")
    config = tiny.load(tiny.ROOT / "configs" / "own_images.py", variant)
    config.data.path, config.data.dir = str(tmp_path), str(tmp_path / "data")
    whole, side = configure.experiment(config, "own"), {"small": 16, "large": 64}[variant]
    jax.eval_shape(lambda: whole.model.score(whole.init(jax.random.key(0)))(jnp.ones((2, side, side, 3)), jnp.ones(2)))
    config = configure.resolve(config, {"model.channels": "8", "model.multipliers": "1,1"})
    experiment = configure.experiment(config, "own")
    assert experiment.data.shape == (side, side, 3) and experiment.data.num_levels == 256
    params = experiment.init(jax.random.key(0))
    x = np.random.default_rng(1).normal(size=(2, side, side, 3)).astype(np.float32)
    process, t = experiment.model.process, np.full(2, 0.5, np.float32)
    alpha, sigma = process.alpha(t), process.sigma(t)
    score = experiment.model.score(params)(x, t, None)
    np.testing.assert_allclose(score, -x * np.reshape(alpha**2 + sigma**2, (2, 1, 1, 1)), rtol=1e-4, atol=1e-4)
    assert configure.evaluation(config).options.features == "pixels"
