"""The published latent models in full size, as shapes alone: latents, what they begin with, and one training step."""

import functools
import re

import jax
import numpy as np
import pytest

from scoreflow import configure, train
from scoreflow.begin import WarmStart
from scoreflow.data import Dataset, Split, load
from scoreflow.dispatch import dispatch_of
from scoreflow.experiment import Experiment
from scoreflow.models import LATENT, MAIN, MIXING
from scoreflow.runs import workdir
from scoreflow.runs.errors import UserError
from scoreflow.step import TrainState, state_of
from tests import tiny
from tests.test_configs import marked

DATA = {"mnist": (28, 28, 1), "omniglot": (28, 28, 1), "cifar10": (32, 32, 3), "celeba": (256, 256, 3)}
LATENTS = {  # under the prior, as tabled
    "mnist": (8, 8, 40), "omniglot": (16, 16, 60), "cifar10_balanced": (16, 16, 180), "cifar10_fid": (16, 16, 180),
    "cifar10_nll": (16, 16, 180), "celeba_quantitative": (32, 32, 160), "celeba_qualitative": (64, 64, 200),
    "celeba_last": (64, 64, 200),
}  # fmt: skip


@pytest.fixture(autouse=True)
def noise_for_data(monkeypatch):
    """Four images of noise of the right shape under every name."""
    read = load.load

    def images(*, name, image_size=0, **settings):
        shape = DATA["celeba" if name == "folder" else name.removesuffix("_28")]
        x = np.random.default_rng(0).integers(0, 256, (4, *shape)).astype(np.uint8)
        return Dataset(name, Split(x), Split(x), num_levels=256)

    monkeypatch.setattr(load, "load", functools.wraps(read)(images))
    with jax.numpy_rank_promotion("allow"):
        yield


@functools.cache
def _built(stem: str, variant: str) -> tuple[Experiment, train.TrainOptions, dict]:
    """The experiment, how it is trained and the shapes of its parameters, exactly as the file has it."""
    config = tiny.load(tiny.ROOT / "configs" / f"{stem}.py", variant)
    experiment = configure.experiment(config, f"{stem}:{variant}")
    params = jax.eval_shape(experiment.init, jax.random.key(0))
    return experiment, configure.train_options(config, experiment), params


def _same_shapes(ours, theirs) -> bool:
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), tree) for tree in (ours, theirs)]
    return shapes[0] == shapes[1]


def _bytes(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("variant", marked(list(LATENTS), "omniglot|cifar10_(balanced|fid)|celeba_qua"))
def test_published_latent_models_begin_with_what_fits(variant, tmp_path):
    """What the file takes of the run it names has the shapes of this run's parameters, and the settings it needs."""
    experiment, options, params = _built("published_latent", variant)
    assert experiment.space.shape == LATENTS[variant] and params[MIXING]["logits"].shape == LATENTS[variant][-1:]
    source = options.warm_start
    assert isinstance(source, WarmStart)
    stem, _, first = source.folder.name.partition("-")
    wanted = "published_latent-celeba_qualitative" if variant == "celeba_last" else f"published_vae-{variant}"
    assert source.folder == workdir.default(f"configs/{stem}.py:{first}") and source.folder.name == wanted
    other, _, theirs = _built(stem, first)
    taken = set(source.parts) or params.keys() & theirs.keys()
    assert taken == {LATENT}
    assert all(_same_shapes(params[name], theirs[name]) for name in taken)
    workdir.record(tmp_path, other.config)
    workdir.check_same(tmp_path, experiment.config, source.same, ("process.horizon",), defaults=dict(source.defaults))
    with pytest.raises(UserError, match="vae"):
        wrong = {**experiment.config, "vae": {**experiment.config["vae"], "latents": 7}}
        workdir.check_same(tmp_path, wrong, source.same, ("process.horizon",), defaults=dict(source.defaults))
    if variant == "celeba_last":  # whose network is wider than that of the stage before
        assert not _same_shapes(params[MAIN], theirs[MAIN])


@pytest.mark.parametrize(
    "variant", marked(list(LATENTS), "omniglot|cifar10|celeba_qua")
)  # whose networks are like others'
def test_published_latent_models_take_a_step_in_full_size(variant):
    """It keeps every shape; the state is parameters and averages, and two moments of what learns, in single precision."""
    experiment, options, params = _built("published_latent", variant)
    optimizer = options.optimizer
    assert optimizer is not None
    state = jax.eval_shape(lambda params: state_of(params, optimizer), params)
    batch = {"x": jax.ShapeDtypeStruct((1, options.batch_size, *experiment.data.shape), np.uint8)}
    after, metrics = jax.eval_shape(dispatch_of(experiment, options), state, batch)
    assert isinstance(after, TrainState) and _same_shapes(after, state)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    assert metrics["loss"].shape == (1,) and metrics["loss"].dtype == np.float32
    learned = {MAIN: params[MAIN], "logits": params[MIXING]["logits"]}
    if variant != "celeba_last":
        learned[LATENT] = params[LATENT]
    counts = _bytes(state) - 2 * _bytes(params) - 2 * _bytes(learned)
    assert 0 < counts < 100  # of steps, a few integers
    # 16 cards of 32 GB, or 4 of 16 GB, as published: each holds a whole state
    room = 16e9 if re.match("mnist|omniglot", variant) else 32e9
    assert _bytes(state) < room / 2
