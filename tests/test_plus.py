"""The literature's U-Nets: published numbers of parameters, resampling, and what their option sets mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import upfirdn

from scoreflow.models import count_params, network, plus
from scoreflow.models.unet import downsample, upsample


@pytest.fixture(autouse=True)
def _allow_rank_promotion():
    with jax.numpy_rank_promotion("allow"):
        yield


# Karras et al. 2022 print 55,733,891 for DDPM++ with a label of augmentation of 9 numbers. Song et al. 2021: 61,804,419
# and 62,758,915, of which 128 are frequencies that are not learned. ADM: 295.9 million.
COUNTS = [
    (plus.DDPMpp, {}, 32, 55_733_891 - 9 * 128),
    (plus.DDPMpp, {"augment_labels": 9}, 32, 55_733_891),
    (plus.DDPMpp, {"multipliers": (1, 2, 2, 2)}, 32, 61_804_419),
    # the deep one grows by the blocks that the deep NCSN++ grows by
    (plus.DDPMpp, {"multipliers": (1, 2, 2, 2), "blocks": 8}, 32, 61_804_419 + 107_587_075 - 62_758_915),
    (plus.NCSNpp, {"multipliers": (1, 2, 2, 2)}, 32, 62_758_915 - 128),
    (plus.NCSNpp, {"multipliers": (1, 2, 2, 2), "blocks": 8}, 32, 107_587_075 - 128),
    (
        plus.ADM,
        {"channels": 192, "multipliers": (1, 2, 3, 4), "blocks": 3, "attention": (32, 16, 8), "num_classes": 1000},
        64,
        295_899_267,
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("make, options, side, wanted", COUNTS)
def test_parameters_are_as_many_as_published(make, options, side, wanted):
    net = network(make(**options))
    assert count_params(jax.eval_shape(lambda: net.init(jax.random.key(0), (1, side, side, 3)))) == wanted


def test_resampling_is_filtering():
    """Against SciPy's upsample-filter-downsample in each axis; two equal taps are means and copies."""
    x = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(plus.resample(x, (1, 1), up=False), downsample(x), atol=1e-6)
    np.testing.assert_allclose(plus.resample(x, (1, 1), up=True), upsample(x), atol=1e-6)
    taps = np.array([1.0, 3.0, 3.0, 1.0]) / 8.0
    down, up = x, x
    for axis in (1, 2):
        whole = upfirdn(taps, down, axis=axis)  # pads by nothing on the left, so the first of ours is at tap 2
        down = np.take(whole, np.arange(2, 10, 2), axis=axis)
        wide = upfirdn(2.0 * taps, up, up=2, axis=axis)
        up = np.take(wide, np.arange(1, 17), axis=axis)
    np.testing.assert_allclose(plus.resample(x, (1, 3, 3, 1), up=False), down, atol=1e-6)
    np.testing.assert_allclose(plus.resample(x, (1, 3, 3, 1), up=True), up, atol=1e-6)
    flat = np.ones((1, 8, 8, 1), np.float32)
    inside = np.asarray(plus.resample(flat, (1, 3, 3, 1), up=True))[0, 2:-2, 2:-2, 0]
    np.testing.assert_allclose(inside, 1.0, atol=1e-6)


TINY = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "dropout": 0.0}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [plus.DDPMpp, plus.NCSNpp, plus.ADM])
def test_networks_are_functions_of_image_noise_label_and_class(kind):
    """At first zero; then an example does not see its batch mates, and sees its own noise label and class."""
    net = network(kind(**TINY | ({"channels": 64} if kind is plus.ADM else {}), num_classes=3))
    x = jax.random.normal(jax.random.key(0), (3, 8, 8, 2))
    params = net.init(jax.random.key(1), x.shape)
    log_snr, cond = jnp.array([-5.0, 0.0, 5.0]), jnp.array([0, 1, 2])
    assert np.abs(net.apply(params, x, log_snr, cond)).max() == 0.0
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(2), leaf.shape), params)
    run = jax.jit(net.apply)
    out = run(params, x, log_snr, cond)
    np.testing.assert_allclose(run(params, x[:1], log_snr[:1], cond[:1]), out[:1], rtol=1e-4, atol=1e-4)
    for changed in ((log_snr + 1.0, cond), (log_snr, (cond + 1) % 3), (log_snr, None)):
        assert np.abs(run(params, x, *changed) - out).max() > 1e-3


@pytest.mark.slow
def test_recomputing_blocks_changes_nothing():
    x, log_snr = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.array([0.0, 3.0])
    nets = [network(plus.NCSNpp(**TINY, remat=remat)) for remat in (False, True)]
    params = nets[0].init(jax.random.key(1), x.shape)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    slopes = [jax.jit(jax.grad(lambda p, n=net: (n.apply(p, x, log_snr) ** 2).sum()))(params) for net in nets]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), *slopes)


def test_attention_is_that_of_the_library():
    """With its own output layer at random, against `jax.nn.dot_product_attention` on the same queries, keys and values."""
    module = plus.Attention(2, 0.5, 1e-6, jax.nn.initializers.lecun_normal())
    x = jax.random.normal(jax.random.key(0), (3, 4, 4, 8))
    params = module.init(jax.random.key(1), x)["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(2), leaf.shape), params)
    norm, inner, outer = params["GroupNorm_0"], params["DenseGeneral_0"], params["DenseGeneral_1"]
    groups = x.reshape(3, 16, 2, 4)  # max(1, 8 // 4) groups of channels
    mean, var = (f(groups, axis=(1, 3), keepdims=True) for f in (jnp.mean, jnp.var))
    h = ((groups - mean) / jnp.sqrt(var + 1e-6)).reshape(3, 16, 8) * norm["scale"] + norm["bias"]
    q, k, v = (jnp.einsum("bnc,chd->bnhd", h, inner["kernel"][:, i]) + inner["bias"][i] for i in range(3))
    h = jnp.einsum("bnhd,hdc->bnc", jax.nn.dot_product_attention(q, k, v), outer["kernel"]) + outer["bias"]
    wanted = 0.5 * (x + h.reshape(x.shape))
    np.testing.assert_allclose(module.apply({"params": params}, x), wanted, atol=2e-5)


def test_frequencies_of_a_label_fall_geometrically_from_1_to_1e_4():
    features = plus.positional(jnp.asarray([1.0]), 10)[0]
    angles = 10.0 ** -np.arange(5)
    np.testing.assert_allclose(features, np.concatenate([np.cos(angles), np.sin(angles)]), rtol=1e-5)


@pytest.mark.parametrize("features, groups", [(64, 16), (128, 32), (256, 32), (1024, 32), (2, 1)])
def test_a_norm_has_a_group_for_every_four_channels_and_32_at_most(features, groups):
    assert plus._norm(features, None, 1e-6).num_groups == groups
