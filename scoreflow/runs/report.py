"""The output of a run: console, JSON files, image grids, plots. Only process 0 writes it."""

import contextlib
import json
import math
import os
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

import numpy as np

from scoreflow.runs import files, parallel

T = TypeVar("T")

_LINE = 13  # pixels of a line of words in a grid
_bars: list[Any] = []  # that are on the terminal now
_PLAIN_SECONDS = 10.0  # between progress lines where there is no terminal


def say(*words: object, file: TextIO | None = None) -> None:
    """Prints a line, from one process only."""
    if parallel.is_main():
        out = file or sys.stdout
        text = typed(" ".join(map(str, words)), out.encoding)
        if _bars:
            _bars[-1].write(text, file=out)  # above the bar
            out.flush()
        else:
            print(text, file=out, flush=True)


@contextlib.contextmanager
def waiting(words: str) -> Iterator[None]:
    """Says what is going on and, on a terminal, for how many seconds: for work of which no share is known."""
    say(words)
    if not (parallel.is_main() and sys.stderr.isatty()) or _bars:
        yield
        return
    over, began = threading.Event(), time.monotonic()

    def show() -> None:
        while not over.wait(1.0):
            print(f"\r  {time.monotonic() - began:.0f} s", end="", file=sys.stderr, flush=True)
        print("\r" + " " * 12, end="\r", file=sys.stderr, flush=True)

    clock = threading.Thread(target=show, daemon=True)
    clock.start()
    try:
        yield
    finally:
        over.set()
        clock.join()


def warn(message: str) -> None:
    """Prints a warning that cannot be overlooked."""
    say(styled(f"WARNING: {message}", "33", sys.stderr), file=sys.stderr)


def heading(text: str) -> str:
    """A title of what is printed, bold on a terminal."""
    return styled(text, "1", sys.stdout)


def styled(text: str, code: str, out: TextIO) -> str:
    """Words in a color or weight by its ANSI code, on a terminal that has them and unless NO_COLOR is set."""
    plain = not out.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else f"\x1b[{code}m{text}\x1b[0m"


def typed(text: str, encoding: str | None) -> str:
    """Words with other signs where an encoding lacks theirs."""
    encoding = encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        known = text.replace("±", "+-").replace("−", "-").replace("…", "...")
        return known.encode(encoding, "replace").decode(encoding)
    return text


def _in_notebook() -> bool:
    """Whether this is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def progress(
    items: Iterable[T],
    *,
    total: int | None,
    initial: int = 0,
    unit: str = "step",
    size: Callable[[T], int] = lambda item: 1,
    note: Callable[[], str] = lambda: "",
) -> Iterator[T]:
    """Passes items on, showing progress, rate and time left: a bar on a terminal or in a notebook, else plain lines.

    Args:
      items: what to iterate over.
      total: the count at the end, in `unit`; None where it is not known, and then no time left is shown.
      initial: the count at the beginning.
      unit: name of what is counted.
      size: item -> its count.
      note: gives what is printed beside the count, such as the loss.
    """
    if not parallel.is_main():
        yield from items
        return
    if sys.stderr.isatty() or _in_notebook():
        with warnings.catch_warnings():  # without ipywidgets, a notebook has a bar of letters
            warnings.simplefilter("ignore")
            from tqdm.auto import tqdm

        with tqdm(total=total, initial=initial, unit=unit, dynamic_ncols=True) as bar:
            _bars.append(bar)
            try:
                for item in items:
                    yield item
                    bar.set_postfix_str(note(), refresh=False)
                    bar.update(size(item))
            finally:
                _bars.remove(bar)
        return
    start, last = None, 0.0  # the clock starts after the first item, which compiles
    done = first = initial
    for item in items:
        yield item
        done += size(item)
        now = time.monotonic()
        if start is None:
            start, last, first = now, now, done
        elif now - last >= _PLAIN_SECONDS or done == total:
            last, rate = now, (done - first) / max(now - start, 1e-9)
            count = f"{done}" if total is None else f"{done:>{len(str(total))}}/{total}"
            left = "" if total is None else f"{duration((total - done) / rate)} left"
            words = [f"{count} {unit}s", note(), f"{rate:.3g}/s", left]
            print("   ".join(filter(None, words)), file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A time in the unit that a person would choose."""
    if seconds < 120.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60.0:.0f} min" if seconds < 7200.0 else f"{seconds / 3600.0:.1f} h"


def write_json(path: Path, content: dict) -> None:
    """Writes JSON whole or not at all, from one process."""
    if parallel.is_main():
        files.write_text(path, json.dumps(content, indent=2, sort_keys=False) + "\n")


def table(rows: list[tuple[str, ...]], columns: int | None = None) -> str:
    """Rows of words in aligned columns.

    Args:
      rows: cells from left to right; a row may have fewer than others.
      columns: characters in a line, into which the last cells are wrapped; None for lines as long as they need.
    """
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    indent = sum(widths[:-1]) + 2 * (len(widths) - 1)
    room = max((columns or 0) - indent, 20)
    lines = []
    for row in rows:
        cells = [word.ljust(width) for word, width in zip(row, widths)]
        if columns and len(row) == len(widths):
            cells[-1] = f"\n{' ' * indent}".join(textwrap.wrap(row[-1], room))
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def eight_bits(images: np.ndarray, num_levels: int) -> np.ndarray:
    """Levels 0 ... num_levels - 1 spread over 0 ... 255, uint8."""
    return (np.arange(num_levels) * 255.0 / (num_levels - 1)).round().astype(np.uint8)[images]


def grid(
    images: np.ndarray,
    num_levels: int,
    *,
    columns: int | None = None,
    gap: int = 1,
    min_width: int = 640,
    words: Sequence[str] | None = None,
    head: Sequence[str] | None = None,
) -> np.ndarray:
    """Tiles images [N, H, W, C] with gaps, enlarged to `min_width` pixels or more; [H', W', 3] uint8.

    Args:
      images: integers in 0 ... num_levels - 1; C is 1 or 3.
      num_levels: number of gray levels, which are spread over 0 ... 255.
      columns: images in a row; None for a square grid.
      gap: pixels between images, before enlarging.
      min_width: least width of the result in pixels.
      words: what is written above each image.
      head: what is written above each column.
    """
    n, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    across = columns * (width + gap) + gap
    scale = max(1, -(-min_width // across))
    above = gap if words is None else max(gap, -(-_LINE // scale))
    canvas = np.full((rows * (height + above) + gap, across, 3), 96, np.uint8)
    scaled = eight_bits(images, num_levels)
    corners = [(above + (i // columns) * (height + above), gap + (i % columns) * (width + gap)) for i in range(n)]
    shown = np.broadcast_to(scaled, (*scaled.shape[:3], 3)) if channels == 1 else scaled
    for (top, left), image in zip(corners, shown):
        canvas[top : top + height, left : left + width] = image
    pixels = canvas.repeat(scale, axis=0).repeat(scale, axis=1)
    if words is not None:
        pixels = _written(pixels, [(scale * x, scale * y) for y, x in corners], words, scale * width)
    if head is not None:
        band = np.full((_LINE, *pixels.shape[1:]), 96, np.uint8)
        pixels = _written(
            np.concatenate([band, pixels]), [(scale * x, _LINE) for _, x in corners[:columns]], head, scale * width
        )
    return pixels


def _written(pixels: np.ndarray, corners: list[tuple[int, int]], words: Sequence[str], room: int) -> np.ndarray:
    """Words on top of the corners (x, y), cut to the room that there is."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    for (x, y), word in zip(corners, words):
        short = word
        while draw.textlength(short) > room and len(short) > 2:
            short = short.rstrip(".")[:-1] + ".."
        draw.text((x + 1, y - _LINE + 1), short, fill=(255, 255, 255))
    return np.asarray(image)


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Writes [H, W, 3] uint8 as PNG, from one process."""
    if parallel.is_main():
        from PIL import Image

        with files.replacing(path) as scratch:
            Image.fromarray(pixels).save(scratch)


def _save(figure: Any, path: Path) -> None:
    with files.replacing(path) as scratch:
        figure.savefig(scratch, dpi=130)


def _figure(path: Path, draw: Callable[[Any], None], size: tuple[float, float] = (6.4, 4.0)) -> None:
    if not parallel.is_main():
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    draw(figure.subplots())
    _save(figure, path)


def plot_loss(path: Path, records: list[dict]) -> None:
    """Training and validation loss against step."""

    def draw(axes):
        styles: dict[str, dict[str, Any]] = {
            "loss": {"alpha": 0.7, "linewidth": 1, "label": "training data, current parameters"},
            "validation_loss": {"marker": "o", "label": "test data, averaged parameters"},
        }
        for name, style in styles.items():
            points = [(r["step"], r[name]) for r in records if name in r]
            if points:
                axes.plot(*zip(*points), **style)
        axes.set(xlabel="training step", ylabel="training objective, mean over the batch")
        axes.legend(frameon=False)

    _figure(path, draw)


def plot_noise_error(path: Path, log_snr: np.ndarray, curves: dict[str, np.ndarray]) -> None:
    """Noise-prediction error per dimension against log-SNR, one curve per name."""

    def draw(axes):
        for name, values in curves.items():
            axes.plot(log_snr, values, label=name)
        axes.invert_xaxis()
        axes.set(
            xlabel="log-SNR (data left, noise right)", ylabel="noise-prediction error per dimension", ylim=(0, None)
        )
        axes.legend(frameon=False)

    _figure(path, draw)


def plot_steps(
    path: Path,
    steps: Sequence[int],
    panels: dict[str, dict[str, list[float]]],
    target: float | None = None,
    *,
    ylabel: str = "",
    dashed: Collection[str] = (),
) -> None:
    """Distances against steps, both logarithmic.

    Args:
      path: of the picture.
      steps: numbers of steps.
      panels: title of each panel -> name of each curve -> its distances; a curve may end early.
      target: distance at which a horizontal line is drawn, or None.
      ylabel: what the distances are, with their unit.
      dashed: names of the curves that are drawn dashed.
    """
    if not parallel.is_main():
        return
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    columns, rows = min(len(panels), 2), math.ceil(len(panels) / 2)
    figure = Figure(figsize=(4.6 * columns + 2, 3.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (title, curves) in zip(grid, panels.items()):
        for i, (name, values) in enumerate(curves.items()):
            style = {"color": colormaps["tab20"](i % 20), "linestyle": "--" if name in dashed else "-"}
            axes.loglog(steps[: len(values)], values, marker=".", label=name, **style)
        if target is not None:
            axes.axhline(target, color="black", linewidth=0.8, linestyle=":", label="accuracy requested")
        axes.set(title=title, xlabel="steps of the sampler", ylabel=ylabel)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
    _save(figure, path)


@contextlib.contextmanager
def _panels(path: Path, count: int, width: float, height: float) -> Iterator[np.ndarray]:
    """The axes of `count` panels in a row, written to `path` when they are drawn."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * count, height), layout="constrained")
    yield np.atleast_1d(figure.subplots(1, count))
    if parallel.is_main():
        _save(figure, path)


def plot_times(path: Path, t: np.ndarray, panels: dict[str, dict[str, np.ndarray]]) -> None:
    """Positive curves over time, logarithmic: a panel per title, a curve per name."""
    with _panels(path, len(panels), 4.4, 3.4) as row:
        for axes, (title, curves) in zip(row, panels.items()):
            for name, values in curves.items():
                axes.semilogy(t, np.where(np.asarray(values) > 0, values, np.nan), label=name)
            axes.set(xlabel="time t", ylabel=title)
            if len(curves) > 1:
                axes.legend(frameon=False)


def plot_points(path: Path, panels: dict[str, np.ndarray], extent: float) -> None:
    """Scatter plots of points in the plane [N, 2], one panel per name, on [-extent, extent]^2."""
    with _panels(path, len(panels), 3.2, 3.4) as row:
        for axes, (name, points) in zip(row, panels.items()):
            axes.plot(points[:, 0], points[:, 1], ".", color="#08519c", markersize=3, alpha=0.6, markeredgewidth=0)
            axes.set(title=name, xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal")
            axes.set(xlabel="first coordinate", ylabel="second coordinate")
            axes.locator_params(nbins=4)


def plot_errors(path: Path, curves: dict[str, np.ndarray], xlabel: str, ylabel: str) -> None:
    """Points with error bars: of each curve x, y and the error of y, [3, N]."""

    def draw(axes):
        for name, (x, y, error) in curves.items():
            axes.errorbar(x, y, error, marker=".", capsize=2, label=name)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.legend(frameon=False)

    _figure(path, draw)


def plot_signed(path: Path, panels: dict[str, np.ndarray], extent: float) -> None:
    """Maps [n, n] of a quantity of either sign on [-extent, extent]^2, 0 white, one panel and scale per name."""
    side = (-extent, extent, -extent, extent)
    with _panels(path, len(panels), 3.6, 3.2) as row:
        for axes, (name, values) in zip(row, panels.items()):
            largest = float(np.quantile(np.abs(values), 0.995)) or 1.0
            shown = axes.imshow(values, origin="lower", extent=side, cmap="RdBu", vmin=-largest, vmax=largest)
            axes.figure.colorbar(shown, ax=axes, shrink=0.8)
            axes.set(title=name, xlabel="first coordinate", ylabel="second coordinate")
