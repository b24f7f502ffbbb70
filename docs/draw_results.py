"""Draws docs/images/fashion.png, bits/dim against Frechet distance of the runs that docs/results/fashion keeps; and,
where the runs themselves are given, docs/images/fashion_samples.png, the first samples of some of them.

python docs/draw_results.py
python docs/draw_results.py runs/experiments/fashion base mixture joint edm
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from scoreflow.comparison import measures, read

HERE = Path(__file__).parent
LINES = {  # the line of work that a run belongs to, and its color
    "process": ("tab:blue", ("base", "edm", "straight", "ve", "sub_vp")),
    "order of the loss": ("tab:green", ("order_1", "order_2", "order_3")),
    "conservative score": ("tab:purple", ("u", "qc", "c")),
    "latent space": ("tab:red", ("vae", "latent", "joint")),
    "short diffusion": ("tab:orange", ("short", "mixture", "glow")),
    "composition": ("black", ("qc_order_2_mixture", "latent_mixture", "edm_order_3")),
}
NEAR = {  # names in a cluster, at the end of a line
    "order_2": (-64, 16), "edm": (-34, 32), "edm_order_3": (2, 38), "order_3": (34, 20), "base": (36, -4),
    "qc": (30, -22), "u": (-30, -12), "mixture": (10, -14), "qc_order_2_mixture": (8, 6), "short": (-26, -16),
}  # fmt: skip
TICKS = (8, 10, 15, 20, 30, 50, 80, 130)
SIDE, COLUMNS, ROWS = 28, 20, 2


def chart(folder: Path, path: Path) -> None:
    """A point for each run, named; the errors of the distance, since those of bits/dim are common to all runs."""
    runs = [read.read(each, each.name, lambda settings: settings, print) for each in sorted(folder.iterdir())]
    rows = {row.name: dict(zip((run.name for run in runs), row.values)) for row in measures.quantities(runs)}
    figure, axes = plt.subplots(figsize=(8, 5.2), layout="constrained")
    for line, (color, names) in LINES.items():
        for name in (name for name in names if name in rows["bits_per_dim"]):
            bits, distance = rows["bits_per_dim"][name], rows["frechet_image_classifier"][name]
            if bits.value is None or distance.value is None:
                continue
            axes.errorbar(distance.value, bits.value, xerr=distance.stderr, fmt="o", color=color, markersize=5)
            place = {"xytext": NEAR.get(name, (5, 4)), "textcoords": "offset points"}
            line_to = {"arrowstyle": "-", "color": "gray", "linewidth": 0.6} if name in NEAR else None
            axes.annotate(name, (distance.value, bits.value), **place, fontsize=8, arrowprops=line_to)
        axes.plot([], [], "o", color=color, label=line)
    axes.set(
        xlabel="Frechet distance of samples, classifier features (left is better)",
        ylabel="bits/dim of test images (down is better)", xscale="log",
    )  # fmt: skip
    axes.set_xticks(TICKS, labels=[str(tick) for tick in TICKS])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def first_samples(folder: Path, count: int = ROWS * COLUMNS) -> np.ndarray:
    """The first samples of a run's evaluation [count, SIDE, SIDE], from its picture."""
    path = sorted(folder.glob("eval/*/samples.png"))[-1]
    pixels = np.asarray(Image.open(path).convert("L"))
    edges = np.linspace(0, pixels.shape[1], COLUMNS + 1)  # cells have a margin of a pixel
    size = edges[1] - edges[0]
    middle = lambda i: slice(round(i * size + 1), round((i + 1) * size - 1))
    cells = [pixels[middle(i // COLUMNS), middle(i % COLUMNS)] for i in range(count)]
    return np.stack([np.asarray(Image.fromarray(cell).resize((SIDE, SIDE), Image.Resampling.BOX)) for cell in cells])


def samples(folder: Path, names: list[str], path: Path) -> None:
    """Two rows of samples for each of the runs."""
    figure, axes = plt.subplots(len(names), 1, figsize=(9, 1.05 * len(names)), layout="constrained")
    for axis, name in zip(np.atleast_1d(axes), names):
        x = first_samples(folder / name).reshape(ROWS, COLUMNS, SIDE, SIDE)
        axis.imshow(x.swapaxes(1, 2).reshape(ROWS * SIDE, COLUMNS * SIDE), cmap="gray", vmin=0, vmax=255)
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    figure.savefig(path, dpi=120)


def main() -> None:
    chart(HERE / "results" / "fashion", HERE / "images" / "fashion.png")
    if sys.argv[1:]:
        samples(Path(sys.argv[1]), sys.argv[2:], HERE / "images" / "fashion_samples.png")


if __name__ == "__main__":
    main()
