"""How long to diffuse, where everything is known in closed form or by quadrature.

    python -m experiments.diffusion_time          about a minute on 2 CPU cores

For 0.3 N(1, 0.1^2) + 0.7 N(3, 0.5^2) under VP (beta from 0.1 to 20, cut off at T, not rescaled) and a score that is off
by 0.3 everywhere, in nats:

    KL prior, KL gauss     of p_T from N(0, 1), and from the Gaussian with its mean and variance, the simplest bridge
    G                      what the score's error costs up to T
    L ...                  the bound: E log p_data - G - KL, with N(0, 1), the Gaussian or p_T itself at the end
    q: KL, mean, std       what the exact score's reverse SDE makes of N(0, 1) at T

then the best T in [0.02, 1] for errors of other sizes and kinds, and how far Gaussians of a restricted covariance stay
from p_T for an 8x8 field of correlated pixels.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from experiments import common
from scoreflow.processes import sdes
from scoreflow.runs import report
from scoreflow.theory import exact
from scoreflow.theory import horizon as hz

HORIZONS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
DELTA, T_MIN = 0.3, 1e-3  # the score's constant error; where that of the noise begins to count
RANKS = (0, 1, 4, 16)


def forward_process() -> sdes.Process:
    """VP in double precision."""
    return jax.tree.map(lambda leaf: np.float64(leaf), sdes.vp_linear())


def mixture_row(t: float) -> dict[str, float]:
    """The terms at one horizon."""
    process, data = forward_process(), hz.TWO_PEAKS
    end = data.at(process, t)
    prior, gauss = hz.line_kl(end, hz.STANDARD), hz.line_kl(end, end.matched())
    gap, negative_entropy = float(hz.constant_error_gap(process, DELTA, t)), -hz.line_entropy(data)
    best = negative_entropy - gap
    row = {"T": t, "KL prior": prior, "KL gauss": gauss, "G": gap}
    row |= {"L prior": best - prior, "L gauss": best - gauss, "L perfect": best}
    generated = hz.generated(process, data, hz.STANDARD, t)
    return row | {"q: KL": generated.kl, "q: mean": generated.mean, "q: std": generated.std}


def best_rows() -> list[tuple[str, ...]]:
    """The best T, without a bridge and with the Gaussian one, for errors of a size and kind."""
    process, data = forward_process(), hz.TWO_PEAKS
    kinds = {
        "of the score, constant": (lambda size, t: hz.constant_error_gap(process, size, t), (0.1, 0.3, 0.5, 1.0)),
        "of the noise, t > 0.001": (lambda size, t: hz.noise_error_gap(process, size, t, T_MIN), (0.1, 0.2, 0.5)),
    }
    rows = [("error", "size", "best T", "KL + G there", "best T, Gaussian bridge", "KL + G there")]
    for kind, (gap, sizes) in kinds.items():
        for size in sizes:

            def loss(t, bridge, gap=gap, size=size):
                end = data.at(process, t)
                return hz.line_kl(end, end.matched() if bridge else hz.STANDARD) + float(gap(size, t))

            cells = []
            for bridge in (False, True):
                t = hz.best(lambda t, bridge=bridge, loss=loss: loss(t, bridge), 0.02, 1.0, 50)
                cells += [f"{t:.5f}", f"{loss(t, bridge):.6f}"]
            rows.append((kind, f"{size}", *cells))
    return rows


def class_rows(horizons: Sequence[float]) -> list[tuple[str, ...]]:
    """KL of p_T of the 8x8 field from Gaussians, nats."""
    process = forward_process()
    corr = 0.9 ** np.abs(np.subtract.outer(np.arange(8), np.arange(8)))
    field, mean = 0.25 * np.kron(corr, corr), np.full(64, -0.2)
    values, axes = np.linalg.eigh(field)
    rows = [("T", "prior", *("isotropic" if r == 0 else f"{r} directions" for r in RANKS), "diagonal")]
    for t in horizons:
        noised = float(process.alpha(t)) ** 2 * field + float(process.variance(t)) * np.eye(64)
        prior = float(hz.gaussian_kl(process, exact.Gaussian(axes.T @ mean, values), t, 1.0))
        divergences = [prior, *(hz.class_kl(noised, rank) for rank in RANKS), hz.class_kl(noised)]
        rows.append((f"{t:g}", *(f"{kl:.5f}" for kl in divergences)))
    return rows


def main() -> None:
    args = common.arguments(__doc__, "diffusion_time")
    horizons = HORIZONS[2:5] if args.fast else HORIZONS
    with jax.enable_x64(True):
        mixture = [mixture_row(t) for t in horizons]
        best = best_rows()[:3] if args.fast else best_rows()
        classes = class_rows(horizons if args.fast else (0.1, 0.2, 0.4, 0.6))
    rows = [tuple(mixture[0]), *(tuple(f"{value:.6g}" for value in row.values()) for row in mixture)]
    lines = ["mixture on the line, score off by 0.3, nats", "", report.table(rows)]
    lines += ["", "where the bound is best", "", report.table(best)]
    lines += ["", "8x8 field: KL of p_T from the closest Gaussian of a class, nats", "", report.table(classes)]
    draw(args.out / "bound.png", mixture)
    common.finish(args.out, lines)


def draw(path: Path, rows: list[dict[str, float]]) -> None:
    """The bound against T under three terminal distributions, and its two costs."""
    t = [row["T"] for row in rows]
    bounds = {"L prior": "N(0, 1)", "L gauss": "Gaussian bridge", "L perfect": "p_T itself"}
    costs = {"KL prior": "KL to N(0, 1)", "KL gauss": "KL to the Gaussian", "G": "G, the score's error"}
    with common.panels(path, 1, 2, (9, 3.6)) as axes_of:
        left, right = axes_of[0]
        for name, label in bounds.items():
            left.plot(t, [row[name] for row in rows], marker=".", label=label)
        left.set(xlabel="T", ylabel="bound, nats", ylim=(-2.1, -0.8))
        left.legend(frameon=False)
        for name, label in costs.items():
            right.semilogy(t, [max(row[name], 1e-9) for row in rows], marker=".", label=label)
        right.set(xlabel="T", ylabel="nats", ylim=(1e-6, 10))
        right.legend(frameon=False)


if __name__ == "__main__":
    main()
