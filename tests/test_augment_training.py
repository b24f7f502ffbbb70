"""Augmentation in training: what the objective and the network make of it, and runs with it from end to end."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow import augment, configure, evaluate, sample, train
from scoreflow.experiment import load_params
from scoreflow.models import network, plus
from scoreflow.objectives import conservative, dsm, score_matching
from scoreflow.runs.errors import UserError
from scoreflow.types import Conditioning
from tests import tiny
from tests.truth import PROCESSES


@pytest.fixture(autouse=True)
def _allow_rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


PROCESS = PROCESSES["vp"]
BATCH = {"x": jax.random.normal(jax.random.key(0), (8, 4, 4, 1)), "label": jnp.arange(8) % 4}
TOY = {"name": "ddpmpp", "channels": 8, "multipliers": (1, 1), "blocks": 1, "attention": (), "dropout": 0.0}


def score_of(params, *, train=False, key=None):
    """A score moved by the class and by all that the network is told of augmentation."""

    def score(x, t, cond=None):
        label, told = cond if isinstance(cond, Conditioning) else (cond, jnp.zeros((len(x), 3)))
        moved = 0.1 * label + told @ jnp.array([1.0, -2.0, 0.5])
        return -params * x / (1.0 + t[:, None, None, None]) + moved[:, None, None, None]

    return score


def shrink(key, x):
    """Half as large images, and a label of three numbers that differ from example to example."""
    return augment.Augmented(0.5 * x, jax.random.normal(key, (len(x), 3)))


# --- the objective ----------------------------------------------------------------------------------------------------


def test_training_matches_the_score_of_augmented_images_given_their_label():
    """In training the loss at the augmented images with class and label; in validation that without augmentation."""
    options = {"t_min": 1e-3, "labels": score_matching.labels(4)}
    penalty = functools.partial(conservative.quasi_conservative, fraction=0.5, num=1)
    encode, params, key = lambda params, key, x: x, jnp.float32(1.5), jax.random.key(3)
    make = functools.partial(score_matching.score_matching, PROCESS, score_of, encode, penalty=penalty, **options)
    augmented, plain = make(augmentation=augment.Augmentation(shrink, 3)), make()
    np.testing.assert_array_equal(
        augmented(params, key, BATCH, train=False)[0], plain(params, key, BATCH, train=False)[0]
    )

    seen = []

    def loss(process, score, key, x0, t, cond=None, **keywords):
        seen.append((x0, cond))
        return dsm.dsm(process, score, key, x0, t, cond, **keywords)

    total, terms = make(augmentation=augment.Augmentation(shrink, 3), loss=loss)(params, key, BATCH, train=True)
    ((x0, cond),) = seen
    np.testing.assert_array_equal(x0, 0.5 * BATCH["x"])
    np.testing.assert_array_equal(cond.label, BATCH["label"])
    halved = {**BATCH, "x": 0.5 * BATCH["x"]}

    def told_score(params, **keywords):
        score = score_of(params)
        return lambda x, t, label: score(x, t, Conditioning(label, cond.augment[: len(x)]))

    by_hand = score_matching.score_matching(PROCESS, told_score, encode, penalty=penalty, **options)
    wanted, wanted_terms = by_hand(params, key, halved, train=True)
    np.testing.assert_array_equal(total, wanted)
    assert terms.keys() == wanted_terms.keys() == {"loss", "order1", "asym"}
    other = augmented(params, jax.random.key(4), BATCH, train=True)[0]
    assert float(other) != float(total)  # the label has another draw at another key


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", [plus.DDPMpp, plus.NCSNpp, plus.ADM])
def test_a_network_that_is_told_nothing_is_the_network_without_labels(kind):
    """It has one kernel more, without bias; the label zero, no label and no augmentation at all give the same bits."""
    small = {key: value for key, value in TOY.items() if key != "name"} | {"channels": 64 if kind is plus.ADM else 8}
    plain, told = network(kind(**small, num_classes=3)), network(kind(**small, num_classes=3, augment_labels=9))
    x, log_snr, cond = jax.random.normal(jax.random.key(0), (3, 8, 8, 2)), jnp.array([-5.0, 0.0, 5.0]), jnp.arange(3)
    params = told.init(jax.random.key(1), x.shape)
    (kernel,) = jax.tree.leaves(params["augment"])
    width = 2 * small["channels"] if kind is plus.NCSNpp else small["channels"]
    assert kernel.shape == (9, width) and (kind is plus.ADM) == (np.abs(kernel).max() == 0.0)
    rest = {name: leaf for name, leaf in params.items() if name != "augment"}
    jax.tree.map(np.testing.assert_array_equal, rest, plain.init(jax.random.key(1), x.shape))
    move = lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(2), leaf.shape)
    params, run = jax.tree.map(move, params), jax.jit(told.apply)
    out = jax.jit(plain.apply)({name: params[name] for name in rest}, x, log_snr, cond)
    for quiet in (cond, Conditioning(cond, jnp.zeros((3, 9)))):
        np.testing.assert_array_equal(run(params, x, log_snr, quiet), out)
    np.testing.assert_array_equal(
        run(params, x, log_snr, None), run(params, x, log_snr, Conditioning(None, jnp.zeros((3, 9))))
    )
    label = jnp.zeros((3, 9)).at[1, 4].set(1.0)  # an example has its own label
    changed = np.abs(run(params, x, log_snr, Conditioning(cond, label)) - out).max((1, 2, 3))
    assert changed[1] > 1e-3 and changed[0] == changed[2] == 0.0


@pytest.mark.slow
def test_the_gradient_reaches_the_map_of_the_label():
    """As finite differences along a random direction say; without a label it is zero."""
    net = network(plus.DDPMpp(**{key: value for key, value in TOY.items() if key != "name"}, augment_labels=9))
    x, log_snr = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.array([0.0, 3.0])
    params = net.init(jax.random.key(1), x.shape)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(2), leaf.shape), params)
    told = Conditioning(None, jax.random.normal(jax.random.key(3), (2, 9)))
    direction = jax.random.normal(jax.random.key(4), params["augment"]["kernel"].shape)

    @jax.jit
    def objective(kernel, cond):
        return (net.apply({**params, "augment": {"kernel": kernel}}, x, log_snr, cond) ** 2).sum()

    kernel = params["augment"]["kernel"]
    slope = jax.grad(objective)(kernel, told)
    step = 1e-2
    numeric = (objective(kernel + step * direction, told) - objective(kernel - step * direction, told)) / (2 * step)
    assert float(jnp.vdot(slope, direction)) == pytest.approx(float(numeric), rel=2e-2)
    assert np.abs(slope).min() > 0.0 and not np.any(jax.grad(objective)(kernel, None))


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, words",
    [
        ({"augment__name": "edm"}, "augment.name = edm needs model.name = ddpmpp, ncsnpp or adm, not mlp"),
        (
            {"augment__name": "edm", "data__name": "rings"},
            "augment.name = edm needs images, not examples of shape (2,)",
        ),
        (
            {
                "augment__name": "edm",
                "vae": {"name": "mlp", "latents": 2},
                "decoder__name": "categorical",
                "latent__name": "alone",
            },
            "augment.name = edm is for data space, and latent.name = alone",
        ),
        (
            {"augment": {"name": "edm", "kinds": ("turn",)}},
            "augment.kinds = ('turn',) must be a tuple of names among xflip",
        ),
        ({"augment": {"name": "edm", "probability": 1.5}}, "augment.probability = 1.5 must be a number from 0 to 1"),
    ],
)
def test_augmentation_that_does_not_go_with_the_rest_gets_one_clear_line(change, words):
    with pytest.raises(UserError) as caught:
        configure.experiment(tiny.digits(**change), "bad")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_network_has_labels_for_the_kinds_that_are_chosen_and_none_without_augmentation():
    """Also with probability zero, so that a run can go on from an augmented one without augmentation."""
    shapes = {}
    for name, kinds, probability in (
        ("none", (), None),
        ("edm", augment.GEOMETRIC, 0.12),
        ("edm", ("hue", "xflip"), 0.0),
    ):
        options = {"name": name} | ({"kinds": kinds, "probability": probability} if kinds else {})
        experiment = configure.experiment(tiny.digits(model=TOY, augment=options), "labels")
        shapes[kinds] = jax.eval_shape(experiment.init, jax.random.key(0))
    assert "augment" not in shapes[()]
    assert shapes[augment.GEOMETRIC]["augment"]["kernel"].shape == (9, 8)
    assert shapes[("hue", "xflip")]["augment"]["kernel"].shape == (3, 8)


@pytest.mark.slow
def test_an_augmented_model_trains_samples_and_is_scored(tmp_path):
    """From a config; its label's map moves, and samples and likelihoods are those of the network without the map."""
    options = {"training__pictures": False, "eval__draws": 1, "eval__rtol": 1e-2, "eval__atol": 1e-2}
    changes = {"model": TOY, "augment": {"name": "edm", "probability": 0.5}, "training__steps_per_dispatch": 2}
    config = tiny.digits(**options, **changes)
    experiment = configure.experiment(config, "augmented")
    folder = tmp_path / "run"
    train.train(experiment, configure.train_options(config, experiment), folder)
    params, first = load_params(experiment, folder, 8), experiment.init(jax.random.key(0))
    assert np.abs(params["augment"]["kernel"] - first["augment"]["kernel"]).max() > 0.0

    plain = configure.experiment(tiny.digits(**options, model=TOY), "plain")
    unlabeled = {name: leaf for name, leaf in params.items() if name != "augment"}
    evaluation = configure.evaluation(config, tmp_path)
    bits = []
    for own, values in ((experiment, params), (plain, unlabeled)):
        context = evaluation.context(own, values)
        measured = evaluate.measure(context, evaluation.evaluators, only=("likelihood",)).metrics["likelihood"]
        bits.append(float(measured["bits_per_dim"].value))
    assert np.isfinite(bits[0]) and bits[0] == pytest.approx(bits[1], rel=1e-6)
    sample.sample(experiment, configure.sample_options(config), folder)
    results = evaluate.evaluate(experiment, evaluation, folder)
    assert results["likelihood"]["likelihood_failed"] == 0 and results["samples"]["model"]["samples"] == 100
