"""A one-layer autoencoder made conservative: does it need tied weights?

    python -m experiments.autoencoder          a minute

s(x) = R h(W^T x + b) + c with two units in the plane and h(z) = z sigmoid(beta z), beta learned for each unit (Chao et
al. 2023, arXiv 2209.12753, section 6). Nothing but L_QC = |J - J^T|_F^2 / 2, averaged over a 40 x 40 grid on
[-10, 10]^2, is minimized, from ten random starts. Tied weights, R = W, are enough for L_QC = 0; the published claim is
that they are not needed, and that the condition is W R^T = R W^T. Corrected here (derived): that condition is right for
a linear h alone. For any other, R diag(h') W^T has to be symmetric at every x, for which each r_k parallel to w_k is
enough.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common
from scoreflow.divergence import asymmetry_exact
from scoreflow.runs import report

SEEDS, STEPS, EVERY = 10, 10_000, 100


class Weights(NamedTuple):
    """`w`, `r` [D, H]; `b`, `beta` [H]; `c` [D]."""

    w: jax.Array
    r: jax.Array
    b: jax.Array
    c: jax.Array
    beta: jax.Array


def init(key: jax.Array, size: int = 2) -> Weights:
    """Weights and biases uniform on (-1, 1), beta 1."""
    keys = jax.random.split(key, 4)
    shapes = ((size, size), (size, size), (size,), (size,))
    uniform = (jax.random.uniform(k, shape, minval=-1.0, maxval=1.0) for k, shape in zip(keys, shapes))
    return Weights(*uniform, jnp.ones(size))


def score(weights: Weights, x: jax.Array, activation: Callable | None = None) -> jax.Array:
    """s(x) for x [B, D]; `activation` in place of h."""
    w, r, b, c, beta = weights
    z = x @ w + b[None]
    h = z * jax.nn.sigmoid(beta[None] * z) if activation is None else activation(z)
    return h @ r.T + c[None]


def grid() -> jax.Array:
    """The 1600 points."""
    side = jnp.linspace(-10, 10, 40)
    return jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(-1, 2)


def measures(weights: Weights) -> jax.Array:
    """L_QC on the grid, |W R^T - R W^T|_F, |W - R|_F and max |r_k x w_k| over units; [4]."""
    w, r = weights.w, weights.r
    difference = w @ r.T - r @ w.T
    crossed = jnp.abs(r[0] * w[1] - r[1] * w[0]).max()
    norm = lambda m: jnp.sqrt(jnp.sum(m**2))
    return jnp.stack([penalty(weights), norm(difference), norm(w - r), crossed])


def penalty(weights: Weights) -> jax.Array:
    """L_QC averaged over the grid."""
    return jnp.mean(asymmetry_exact(lambda x: score(weights, x), grid()).asym)


@functools.partial(jax.jit, static_argnums=1)
def train(weights: Weights, steps: int) -> tuple[Weights, jax.Array]:
    """Adam at 1e-4, clipped at 1; the last weights and `measures` at every EVERY-th step, [steps / EVERY + 1, 4]."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-4))

    def step(_, carry):
        weights, state = carry
        updates, state = optimizer.update(jax.grad(penalty)(weights), state)
        return optax.apply_updates(weights, updates), state

    def block(carry, _):
        carry = jax.lax.fori_loop(0, EVERY, step, carry)
        return carry, measures(carry[0])

    (last, _), history = jax.lax.scan(block, (weights, optimizer.init(weights)), length=steps // EVERY)
    return last, jnp.concatenate([measures(weights)[None], history])


def draw(path: Path, histories: np.ndarray) -> None:
    """The measures against steps, a line for each seed."""
    titles = ("L_QC", "|W R^T - R W^T|", "|W - R|")
    with common.panels(path, 1, 3, (12, 3.4)) as axes_of:
        for i, (axes, title) in enumerate(zip(axes_of[0], titles)):
            draw_line = axes.semilogy if i < 2 else axes.plot
            for history in histories:
                draw_line(EVERY * np.arange(len(history)), np.maximum(history[:, i], 1e-16), linewidth=1)
            axes.set(title=title, xlabel="step")


def main() -> None:
    args = common.arguments(__doc__, "autoencoder")
    seeds, steps = (3, 500) if args.fast else (SEEDS, STEPS)
    rows = [("seed", "L_QC before", "L_QC", "|W R^T - R W^T|", "|W - R| before", "|W - R|", "max |r_k x w_k|")]
    with jax.enable_x64(True):
        histories = [np.asarray(train(init(jax.random.key(seed)), steps)[1]) for seed in range(seeds)]
    for seed, history in enumerate(histories):
        first, last = history[0], history[-1]
        numbers = (first[0], last[0], last[1], first[2], last[2], last[3])
        rows.append((str(seed), *(f"{value:.2g}" for value in numbers)))
    symmetric = sum(history[-1, 0] < 1e-6 for history in histories)
    draw(args.out / "training.png", np.stack(histories))
    head = f"{steps} steps on L_QC alone; {symmetric} of {seeds} starts end below 1e-6"
    common.finish(args.out, [head, "", report.table(rows)])


if __name__ == "__main__":
    main()
