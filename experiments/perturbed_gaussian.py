"""Equal errors, one radial and one that turns: what a score that is not a gradient costs a climb.

    python -m experiments.perturbed_gaussian          10 seconds

The score of N(0, 0.1^2 I) in the plane with an error w(x) of the same size everywhere, along (x1, x2) for a nearly
conservative score C and along (-x2, x1) for an unconstrained one U (Chao et al. 2023, arXiv 2209.12753, section 3.1).
Both climb without noise, x <- x + c_i s(x), c_i = c_0 exp(-i / 1000), from 10 starts; "steps" is the first i at which
the mean of max(0, -log p(x_i)) is below 1e-3. Asym and NAsym of U are sums over a 20 x 20 grid on [-3, 3]^2 weighted
with p. The published table has these two columns exchanged; here each stands under its own name.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common
from scoreflow.divergence import asymmetry_exact
from scoreflow.runs import report

ERRORS = (0.0, 5e-4, 7.5e-4, 1e-3, 1.5e-3, 1.75e-3, 2.25e-3)
STD, ITERATIONS = 0.1, 300

Field = Callable[[jax.Array], jax.Array]
"""x [B, 2] -> [B, 2]."""


def log_p(x: jax.Array) -> jax.Array:
    """log-density of N(0, STD^2 I) at x [B, 2]."""
    return -0.5 * jnp.sum(x**2, axis=1) / STD**2 - jnp.log(2 * jnp.pi * STD**2)


def ring(x: jax.Array) -> jax.Array:
    """Density of ten unit Gaussians evenly on the circle of radius 3, [B]."""
    angles = 2 * np.pi * np.arange(10) / 10
    centers = jnp.asarray(3 * np.stack([np.cos(angles), np.sin(angles)], axis=1))
    square = jnp.sum((x[:, None] - centers[None]) ** 2, axis=-1)
    return jnp.mean(jnp.exp(-0.5 * square), axis=1) / (2 * jnp.pi)


def scores(error: float) -> dict[str, Field]:
    """C and U for a squared error e, by name."""

    def size(x):
        if error == 0:
            return jnp.zeros((len(x), 1))
        square = jnp.sum(x**2, axis=1)
        inside = 2 * (error + 1e-6) * ring(x) / (jnp.exp(log_p(x)) * (square + error + 1e-6) + 1e-8)
        return jnp.sqrt(inside)[:, None]

    exact = lambda x: -x / STD**2
    turned = lambda x: jnp.stack([-x[:, 1], x[:, 0]], axis=1)
    return {"C": lambda x: exact(x) + size(x) * x, "U": lambda x: exact(x) + size(x) * turned(x)}


def climb(score: Field, error: float, start: jax.Array) -> tuple[int, np.ndarray]:
    """Steps until the mean of max(0, -log p) is below 1e-3 (ITERATIONS if never), and the path of all starts."""
    first = 0.01 if error == 0 else 0.0125

    def step(x, i):
        return x + first * jnp.exp(-i / 1000) * score(x), x

    _, path = jax.lax.scan(step, start, jnp.arange(ITERATIONS))
    distance = jax.vmap(lambda x: jnp.mean(jnp.maximum(0.0, -log_p(x))))(path)
    reached = np.flatnonzero(np.asarray(distance) < 1e-3)
    return int(reached[0]) if len(reached) else ITERATIONS, np.asarray(path)


def on_grid(score: Field) -> tuple[float, float]:
    """Sums over the grid of p Asym and p NAsym."""
    side = jnp.linspace(-3, 3, 20)
    x = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(-1, 2)
    asymmetry = asymmetry_exact(score, x)
    p = jnp.exp(log_p(x))
    return float(jnp.sum(p * asymmetry.asym)), float(jnp.sum(p * 0.5 * asymmetry.asym / asymmetry.size))


def draw(path: Path, climbs: dict[str, np.ndarray]) -> None:
    """The paths [steps, 10, 2] of three starts under each score."""
    with common.panels(path, 1, len(climbs), (4.2 * len(climbs), 4)) as axes_of:
        for axes, (name, steps) in zip(axes_of[0], climbs.items()):
            for i in range(3):
                axes.plot(steps[:, i, 0], steps[:, i, 1], ".-", markersize=3, linewidth=0.6)
            axes.plot(0, 0, "k+", markersize=12)
            axes.set(title=name, xlim=(-3.6, 3.6), ylim=(-3.6, 3.6), aspect="equal")


def main() -> None:
    args = common.arguments(__doc__, "perturbed_gaussian")
    rows, paths = [("e", "steps C", "steps U", "Asym U", "NAsym U", "Asym C", "NAsym C")], {}
    with jax.enable_x64(True):
        start = jnp.asarray(np.random.RandomState(0).normal(-2.0, 0.5, (10, 2)))
        for error in ERRORS[:3] if args.fast else ERRORS:
            fields = scores(error)
            climbs = {name: climb(score, error, start) for name, score in fields.items()}
            of_u, of_c = on_grid(fields["U"]), on_grid(fields["C"])
            cells = (f"{error:.2e}", str(climbs["C"][0]), str(climbs["U"][0]), *(f"{value:.2e}" for value in of_u))
            rows.append((*cells, *(f"{value:.0e}" for value in of_c)))
            paths = {f"{name}, e = {error:.2e}": path for name, (_, path) in climbs.items()}
    draw(args.out / "paths.png", paths)
    common.finish(args.out, ["Steps to the mode, and asymmetry on the grid", "", report.table(rows)])


if __name__ == "__main__":
    main()
