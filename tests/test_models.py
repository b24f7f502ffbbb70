import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoreflow.models import Network, count_params, layers, network, with_parts
from scoreflow.models.mlp import ResidualMLP
from scoreflow.models.unet import UNet, downsample, upsample


@pytest.fixture(autouse=True)
def _allow_rank_promotion():
    """Flax's dense layers add a bias [D] to [B, D]."""
    with jax.numpy_rank_promotion("allow"):
        yield


NETS = {
    "mlp": (ResidualMLP(width=16, depth=2, dropout=0.3, num_classes=3), (2, 3)),
    "unet": (
        UNet(channels=4, multipliers=(1, 2), blocks=1, num_heads=2, dropout=0.3, num_classes=3),
        (2, 4, 4, 1),
    ),
}

SLOW_UNET = ["mlp", pytest.param("unet", marks=pytest.mark.slow)]


def jitted(module):
    """The network with both functions compiled whole: op by op, a U-Net takes a minute."""
    net = network(module)
    return Network(jax.jit(net.init, static_argnums=1), jax.jit(net.apply, static_argnames="train"))


def _randomised(net, shape):
    """Parameters away from the zero-initialized ends."""
    rng = np.random.default_rng(1)
    template = jax.eval_shape(lambda: net.init(jax.random.key(0), shape))
    return jax.tree.map(lambda leaf: np.float32(0.3 * rng.standard_normal(leaf.shape)), template)


def _direct(x, kernel):
    """The definition: out[i, j, d] = sum over the 3x3 neighborhood, zero outside."""
    batch, height, width, _ = x.shape
    out = np.zeros((batch, height, width, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            for di in range(3):
                for dj in range(3):
                    if 0 <= i + di - 1 < height and 0 <= j + dj - 1 < width:
                        out[:, i, j] += x[:, i + di - 1, j + dj - 1] @ kernel[di, dj]
    return out


def test_convolution_lowerings_are_the_same_function(x64):
    """Values against the definition; gradients and a second derivative against each other."""
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, 5, 4, 3)), rng.standard_normal((3, 3, 3, 2))
    rules = (layers.conv3x3_direct, layers.conv3x3_shifted, layers.conv3x3_in_loop)
    for rule in rules:
        np.testing.assert_allclose(rule(jnp.asarray(x), jnp.asarray(kernel)), _direct(x, kernel), rtol=1e-10)

    def energy(rule):
        return lambda x, kernel: jnp.sum(jnp.sin(rule(x, kernel)))

    def gradients(rule):
        return jax.grad(energy(rule), argnums=(0, 1))(x, kernel)

    def curvature(rule):
        along = lambda x: jax.jvp(jax.grad(lambda x: energy(rule)(x, kernel)), (x,), (jnp.ones_like(x),))[1]
        return jax.jit(along)(x)

    for rule in rules[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), gradients(rule), gradients(rules[0]))
        np.testing.assert_allclose(curvature(rule), curvature(rules[0]), rtol=1e-9)


@pytest.mark.parametrize("name", SLOW_UNET)
def test_networks_are_smooth_to_third_order(x64, name):
    """Directional derivatives by nested jvp against central differences of the one below."""
    module, shape = NETS[name]
    net = jitted(module)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), _randomised(net, shape))
    x = jax.random.normal(jax.random.key(2), shape, jnp.float64)
    v = jax.random.normal(jax.random.key(3), shape, jnp.float64)
    log_snr, cond = jnp.array([0.3, -2.0]), jnp.array([0, 2])

    def value(s):
        return jnp.sum(net.apply(params, x + s * v, log_snr, cond) ** 2)

    def first(s):
        return jax.jvp(value, (s,), (1.0,))[1]

    def second(s):
        return jax.jvp(first, (s,), (1.0,))[1]

    @jax.jit
    def all_orders(s):
        return jnp.stack([value(s), first(s), second(s), jax.jvp(second, (s,), (1.0,))[1]])

    h = 1e-4
    below, here, above = (np.asarray(all_orders(s)) for s in (0.2 - h, 0.2, 0.2 + h))
    np.testing.assert_allclose(here[1:], ((above - below) / (2 * h))[:-1], rtol=1e-4)
    assert abs(here[3]) > 1e-8  # what a ReLU network would have


@pytest.mark.parametrize("name", SLOW_UNET)
def test_conditioning_and_masks(name):
    module, shape = NETS[name]
    net = jitted(module)
    assert not np.any(net.apply(net.init(jax.random.key(0), shape), jnp.ones(shape), jnp.zeros(2)))  # zero-initialized
    params = _randomised(net, shape)
    x, log_snr = jax.random.normal(jax.random.key(2), shape), jnp.zeros(2)
    plain = net.apply(params, x, log_snr, jnp.array([0, 1]))
    np.testing.assert_array_equal(net.apply(params, x, log_snr, None), net.apply(params, x, log_snr, jnp.array([3, 3])))
    assert np.abs(plain - net.apply(params, x, log_snr, jnp.array([1, 1])))[0].max() > 1e-3
    assert np.abs(plain - net.apply(params, x, log_snr + 1.0, jnp.array([0, 1]))).max() > 1e-3
    train = jax.jit(lambda key: net.apply(params, x, log_snr, None, train=True, key=key))
    noisy = [train(jax.random.key(k)) for k in (0, 0, 1)]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert np.abs(noisy[0] - noisy[2]).max() > 1e-3


@pytest.mark.parametrize("name", NETS)
def test_an_example_does_not_see_its_batch_mates(name):
    module, shape = NETS[name]
    net = jitted(module)
    params, x = _randomised(net, shape), jax.random.normal(jax.random.key(2), shape)
    whole = net.apply(params, x, jnp.array([0.5, -1.0]))
    np.testing.assert_allclose(net.apply(params, x[1:], jnp.array([-1.0])), whole[1:], rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_remat_changes_neither_the_function_nor_its_gradient():
    options = {"channels": 4, "multipliers": (1, 2), "blocks": 1, "num_heads": 2, "dropout": 0.3}
    kept, again = (network(UNet(**options, remat=remat)) for remat in (False, True))
    params = _randomised(kept, (2, 4, 4, 1))
    assert jax.tree.structure(params) == jax.tree.structure(_randomised(again, (2, 4, 4, 1)))
    x, log_snr = jax.random.normal(jax.random.key(0), (2, 4, 4, 1)), jnp.array([-1.0, 2.0])

    def value_and_gradient(net):
        loss = lambda p: jnp.sum(net.apply(p, x, log_snr, train=True, key=jax.random.key(1)) ** 2)
        return jax.jit(jax.value_and_grad(loss))(params)

    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, value_and_gradient(kept), value_and_gradient(again))


@pytest.mark.slow
def test_a_bfloat16_network_has_a_float32_one_with_the_same_parameters():
    module = UNet(channels=16, multipliers=(1,), blocks=1, dtype=jnp.bfloat16)
    low, full = network(module), network(module.clone(dtype=None))
    params = full.init(jax.random.key(0), (2, 8, 8, 1))
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(1), leaf.shape), params)
    inputs = jax.random.normal(jax.random.key(2), (2, 8, 8, 1)), jnp.zeros(2)
    assert full.precise is None and low.precise is not None
    np.testing.assert_array_equal(low.precise(params, *inputs), full.apply(params, *inputs))
    assert np.abs(low.apply(params, *inputs) - full.apply(params, *inputs)).max() > 1e-4
    parts = with_parts(low, more=lambda key, x_shape: {})
    assert parts.precise is not None
    np.testing.assert_array_equal(parts.precise({"score": params}, *inputs), full.apply(params, *inputs))


def test_bfloat16_stays_inside():
    module = UNet(channels=16, multipliers=(1,), blocks=1, dtype=jnp.bfloat16)
    net, exact = jitted(module), jitted(UNet(channels=16, multipliers=(1,), blocks=1))
    params = _randomised(exact, (2, 4, 4, 1))
    x = jax.random.normal(jax.random.key(2), (2, 4, 4, 1))
    rough, fine = (n.apply(params, x, jnp.zeros(2)) for n in (net, exact))
    assert rough.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(net.init(jax.random.key(0), (2, 4, 4, 1))))
    error = float(jnp.abs(rough - fine).max() / jnp.abs(fine).max())
    assert 1e-5 < error < 0.1


def test_resampling_keeps_means():
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
    np.testing.assert_allclose(downsample(upsample(x)), x, rtol=1e-6)
    np.testing.assert_allclose(downsample(x).mean((1, 2)), x.mean((1, 2)), rtol=1e-5, atol=1e-6)


def test_parameters_by_hand():
    """width 16, depth 1 on 6 inputs: embedding, input, modulation, two norms, two dense layers, output."""
    params = network(ResidualMLP(width=16, depth=1)).init(jax.random.key(0), (1, 6))
    embedding = 64 * 16 + 16 + 16 * 16 + 16
    block = (16 * 32 + 32) + 32 + 2 * (16 * 16 + 16)
    assert count_params(params) == embedding + (6 * 16 + 16) + block + 32 + (16 * 6 + 6)


def test_what_stands_between_fusions_is_the_identity_in_all_derivatives(x64):
    """To third order, mapped over numbers and not; and NaN where the number is."""
    wall = lambda x, number: jnp.sin(layers.fusion_barrier(x, number)).sum()
    plain = lambda x, number: jnp.sin(x).sum()
    x, v, number = jnp.linspace(-1.0, 1.0, 6), jnp.arange(6.0), jnp.float64(0.0)

    def third(f):
        slope = lambda x, number: jax.grad(f)(x, number) @ v
        second = lambda x, number: jax.jvp(lambda x: slope(x, number), (x,), (v,))[1]
        return jax.jit(jax.grad(second))

    np.testing.assert_allclose(third(wall)(x, number), third(plain)(x, number), rtol=1e-12)
    many = jnp.zeros(3)
    derivatives = jax.vmap(third(wall), (None, 0))(x, many)
    np.testing.assert_allclose(derivatives, jnp.broadcast_to(third(plain)(x, number), (3, 6)), rtol=1e-12)
    assert np.isnan(jax.jit(layers.fusion_barrier)(x, jnp.float64(jnp.nan))).all()


def test_the_waves_of_a_noise_label_have_lengths_from_1_to_200():
    """With a first layer that changes nothing: sines, then cosines, of 2 pi log_snr / length, in geometric steps."""
    module, label = layers.NoiseEmbedding(10, n_frequencies=5), jnp.asarray([0.3, -2.0])
    params = module.init(jax.random.key(0), label, None)["params"]
    params["Dense_0"] = {"kernel": jnp.eye(10), "bias": jnp.zeros(10)}
    _, seen = module.apply({"params": params}, label, None, capture_intermediates=True)
    angles = 2 * np.pi * np.asarray(label)[:, None] / 200.0 ** (np.arange(5) / 4)
    wanted = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(seen["intermediates"]["Dense_0"]["__call__"][0], wanted, atol=1e-5)
