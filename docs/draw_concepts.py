"""The picture of docs/concepts.md: a process, a score and a terminal distribution, and what replaces each of them.

    python docs/draw_concepts.py                      # ten seconds; writes docs/images/concepts.png

The densities and the paths are exact: the data are a mixture of two Gaussians on the line, under `vp_linear`.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

import scoreflow
from scoreflow.processes.sdes import Process
from scoreflow.samplers import grids, rules, sample
from scoreflow.score import Score

WEIGHTS, MEANS, STDS = np.array([0.4, 0.6]), np.array([-1.6, 1.2]), np.array([0.25, 0.35])
PROCESS, SCORE, TERMINAL, SPACE = "#2f6db3", "#c2571a", "#2f8a57", "#7a4fa3"
EDGE = 3.4
CARDS = (
    (PROCESS, "replace the process", "Which SDE,\nhow many steps?", "guarantees in\nWasserstein distance"),
    (SCORE, "replace the loss", "The likelihood\nof the ODE?", "score matching of\norders 2 and 3"),
    (SCORE, "replace the network", "Must a score\nbe a gradient?", "energies, and a\npenalty on rotation"),
    (TERMINAL, "replace the terminal", "How long\nto diffuse?", "a shorter T, and a\nbridge fitted at T"),
    (SPACE, "wrap all three", "In which\nspace?", "encoder and decoder\ntrained with the score"),
)


def density(process: Process, x: np.ndarray, t: float) -> np.ndarray:
    """p_t at x."""
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    widths = np.sqrt(alpha**2 * STDS**2 + sigma**2)
    each = np.exp(-0.5 * ((x[:, None] - alpha * MEANS) / widths) ** 2) / (widths * np.sqrt(2 * np.pi))
    return each @ WEIGHTS


def score_of(process: Process) -> Score:
    """The exact score of p_t, for x [B, 1]."""

    def log_density(x: jax.Array, t: jax.Array) -> jax.Array:
        alpha, variance = process.alpha(t), process.variance(t)
        widths = alpha**2 * STDS**2 + variance
        return jax.nn.logsumexp(jnp.log(WEIGHTS) - 0.5 * (x - alpha * MEANS) ** 2 / widths - 0.5 * jnp.log(widths))

    slope = jax.vmap(jax.grad(log_density))
    return lambda x, t, cond=None: slope(x[:, 0], t)[:, None]


def draw_paths(axes: Axes, process: Process) -> None:
    """p_t over time, and paths of the probability flow from noise to data."""
    t, x = np.linspace(1e-3, 1.0, 300), np.linspace(-EDGE, EDGE, 300)
    image = np.stack([density(process, x, each) for each in t], axis=1)
    axes.imshow(image**0.6, origin="lower", aspect="auto", extent=(0, 1, -EDGE, EDGE), cmap="Blues", vmax=1.1)
    score, grid = score_of(process), grids.log_snr(process, 300, t_min=1e-3)
    begin = jnp.linspace(-1.9, 1.9, 9)[:, None]
    path = sample(rules.HEUN, process, score, jax.random.key(0), begin, grid, trajectory=True).trajectory
    for each in np.asarray(path)[..., 0].T:
        axes.plot(grid, each, color=SCORE, linewidth=1.3, alpha=0.9)
        middle = int(np.argmin(np.abs(np.asarray(grid) - 0.42)))
        ends = [(float(grid[i]), each[i]) for i in (middle, middle + 12)]
        axes.annotate("", ends[1], ends[0], arrowprops={"arrowstyle": "-|>", "color": SCORE, "linewidth": 1.3})
    axes.set(xlim=(0, 1), ylim=(-EDGE, EDGE), yticks=[], xlabel="time t, from data (0) to noise (T = 1)")


def draw_density(axes: Axes, values: np.ndarray, x: np.ndarray, color: str, title: str, left: bool) -> None:
    """A density along the vertical axis."""
    axes.fill_betweenx(x, values, color=color, alpha=0.25)
    axes.plot(values, x, color=color, linewidth=2)
    axes.set(
        ylim=(-EDGE, EDGE), xlim=(0, 1.15 * values.max()), xticks=[round(values.max() - 0.05, 1)], xlabel="density"
    )
    axes.set_title(title, color=color, fontweight="bold", fontsize=13)
    if left:
        axes.invert_xaxis()
        axes.set_ylabel("x, in the units of the data")
    else:
        axes.set_yticks([])
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def draw_arrow(figure: Figure, begin: tuple, end: tuple, color: str, words: str, above: bool) -> None:
    """An arrow between two points of the figure with words at it."""
    style = {"arrowstyle": "-|>", "mutation_scale": 22, "linewidth": 2.4, "color": color}
    figure.add_artist(FancyArrowPatch(begin, end, transform=figure.transFigure, **style))
    y = begin[1] + (0.012 if above else -0.012)
    middle, align = 0.5 * (begin[0] + end[0]), "bottom" if above else "top"
    figure.text(middle, y, words, color=color, fontsize=13, fontweight="bold", ha="center", va=align)


def draw_box(figure: Figure, corner: tuple, width: float, height: float, **style: Any) -> None:
    """A rounded frame in the coordinates of the figure."""
    box = FancyBboxPatch(corner, width, height, boxstyle="round,pad=0,rounding_size=0.012")
    box.set(transform=figure.transFigure, facecolor="none", **style)
    figure.add_artist(box)


def draw_card(figure: Figure, left: float, width: float, card: tuple[str, str, str, str]) -> None:
    """One line of work: what it replaces, its question, its answer."""
    color, what, question, answer = card
    draw_box(figure, (left, 0.02), width, 0.225, edgecolor=color, linewidth=2)
    middle = left + width / 2
    figure.text(middle, 0.229, what, color=color, fontsize=11, ha="center", va="top", fontweight="bold")
    figure.text(middle, 0.187, question, fontsize=13, ha="center", va="top", fontweight="bold", linespacing=1.15)
    figure.text(middle, 0.099, answer, fontsize=11, ha="center", va="top", linespacing=1.2)


def main() -> None:
    process, x = scoreflow.vp_linear(), np.linspace(-EDGE, EDGE, 400)
    figure = plt.figure(figsize=(11, 7.4), facecolor="white")
    panels = [figure.add_axes((left, 0.45, width, 0.38)) for left, width in ((0.08, 0.10), (0.19, 0.62), (0.82, 0.10))]
    draw_density(panels[0], density(process, x, 1e-4), x, "#444444", "data", left=True)
    draw_paths(panels[1], process)
    draw_density(panels[2], np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi), x, TERMINAL, "terminal", left=False)
    draw_arrow(figure, (0.20, 0.875), (0.80, 0.875), PROCESS, "the forward process adds noise", above=True)
    draw_arrow(figure, (0.80, 0.358), (0.20, 0.358), SCORE, "the score leads back", above=False)
    draw_box(figure, (0.02, 0.285), 0.96, 0.665, edgecolor=SPACE, linewidth=1.6, linestyle=(0, (5, 4)))
    figure.text(
        0.5, 0.962, "the space: the data themselves, or the latents of a VAE", color=SPACE, fontsize=12, ha="center"
    )
    gap, margin = 0.012, 0.02
    width = (1 - 2 * margin - (len(CARDS) - 1) * gap) / len(CARDS)
    for i, card in enumerate(CARDS):
        draw_card(figure, margin + i * (width + gap), width, card)
    figure.savefig(Path(__file__).parent / "images" / "concepts.png", dpi=120)


if __name__ == "__main__":
    main()
