"""Toy densities: their samples, their integrals, and densities under noise, by quadrature."""

import numpy as np
import pytest

from scoreflow.data import load, toy

RNG = np.random.default_rng(0)
CIFAR_IMAGES = RNG.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
CIFAR_LABELS = RNG.integers(0, 10, 60).astype(np.int32)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name == "spirals")) for name in load.TOYS if name != "mixture_1d"],
)
def test_density_integrates_to_one_and_fits_its_samples(name):
    density = load.TOYS[name]()
    side = np.linspace(-6, 6, 301)[:-1] + 0.02
    points = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    mass = np.exp(density.log_prob(points)) * 0.04**2
    assert mass.sum() == pytest.approx(1, abs=5e-3)
    # expectations of a few functions under samples and under the density
    x = density.sample(np.random.default_rng(1), 50_000)
    for h in (
        lambda p: p[:, 0],
        lambda p: (p**2).sum(1),
        lambda p: np.cos(p[:, 0] + 2 * p[:, 1]),
        lambda p: np.sin(3 * p).prod(1),
    ):
        wanted, values = (mass * h(points)).sum(), h(x)
        assert abs(values.mean() - wanted) < 4.5 * values.std() / np.sqrt(len(x)) + 5e-3


def test_mixture_on_the_line():
    """Entropy -0.128854075 nats, by quadrature and by its samples; log density at published points."""
    density, side = toy.gaussian_mixture(*toy.MIXTURES["mixture_1d"]), np.linspace(-2, 2, 8001)
    log_q = density.log_prob(side[:, None])
    entropy = -(np.exp(log_q) * log_q).sum() * 0.0005
    assert entropy == pytest.approx(-0.128854075, abs=1e-8)
    values = -density.log_prob(density.sample(np.random.default_rng(0), 100_000))
    assert abs(values.mean() - entropy) < 4 * values.std() / np.sqrt(1e5)
    log_prob = density.log_prob(np.array([[-0.9], [-0.25], [0.5]]))
    np.testing.assert_allclose(log_prob, [0.5242913580, 0.6617913961, -0.0143191160], atol=1e-9)


def test_toy_values():
    assert toy.checkerboard().log_prob(np.array([[0.5, 1.0]]))[0] == pytest.approx(-np.log(32))
    log_prob = toy.gaussian_mixture(*toy.MIXTURES["mixture"]).log_prob(np.array([[0.3, -0.4]]))
    weights, means = np.array([0.5, 0.3, 0.2]), np.array([[1, 0], [-1, 1], [0, -2]])
    covs = np.array([[[0.5, 0.2], [0.2, 0.4]], [[0.3, 0], [0, 0.6]], [[0.2, -0.1], [-0.1, 0.3]]])
    wanted = 0.0
    for w, m, c in zip(weights, means, covs):
        d = np.array([0.3, -0.4]) - m
        wanted += w * np.exp(-0.5 * d @ np.linalg.inv(c) @ d) / (2 * np.pi * np.sqrt(np.linalg.det(c)))
    assert log_prob[0] == pytest.approx(np.log(wanted), rel=1e-12)


def test_ring_density_against_quadrature():
    """The blurred circle as a two-dimensional convolution, by brute force over the angle."""
    density, x = toy.rings(radii=(1.5,), std=0.3), np.array([0.7, -1.1])
    angles = np.linspace(0, 2 * np.pi, 4001)[:-1]
    centers = 1.5 * np.stack([np.cos(angles), np.sin(angles)], 1)
    wanted = np.mean(np.exp(-0.5 * ((x - centers) ** 2).sum(1) / 0.09) / (2 * np.pi * 0.09))
    assert density.log_prob(x[None])[0] == pytest.approx(np.log(wanted), rel=1e-10)


def test_the_density_of_spirals_is_that_of_their_draws():
    """Around a few points, its integral over a disk is the share of draws in it; a point has it alone or among others."""
    density, rng = toy.spirals(), np.random.default_rng(0)
    x = density.sample(rng, 1200)
    alone = np.concatenate([density.log_prob(x[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(density.log_prob(x)[:3], alone, rtol=1e-12)
    curve, std = density.sample(np.random.default_rng(1), 400_000), 0.3
    # the share of samples in a disk around a point is the integral of the density over it
    for point in x[:3]:
        inside = np.linalg.norm(curve - point, axis=1) < std
        angle, radius = rng.uniform(0, 2 * np.pi, 20_000), std * np.sqrt(rng.uniform(0, 1, 20_000))
        disk = point + np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
        wanted = np.exp(density.log_prob(disk)).mean() * np.pi * std**2
        assert inside.mean() == pytest.approx(wanted, abs=4 * np.sqrt(wanted / len(curve)) + 0.01 * wanted)
