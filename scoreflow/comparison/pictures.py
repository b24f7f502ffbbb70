"""Plots of a comparison as SVG that takes the colors of the page, and pictures that lie inside the page."""

import base64
import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.interpolate import CubicSpline

from scoreflow.comparison.budgets import losses_differ, validations
from scoreflow.comparison.measures import AXES, UNITS, Value, measured, newest
from scoreflow.comparison.read import Evaluated, Run, number

COLORS = ("#0b7ec4", "#e2711d", "#1f9e77", "#c2529b", "#b58900", "#7a6ff0", "#d64545", "#6b7a8f")
"""Of the runs in turn, readable on light and on dark pages."""

_MARKERS = "osD^vPX*"
_INK = "#010203"  # becomes the color of the page's text
_SIZE = (4.3, 3.0)  # inches
_LOGARITHMIC = 30.0  # from which ratio on an axis is logarithmic
_LARGE = 1e4  # from which numbers on an axis have prefixes
_WIDTH = 640  # pixels of a run's own picture, at most
_AXES = {"steps": "training steps", "operations": "operations of training", "seconds": "seconds of training"}


class Plot(NamedTuple):
    """A plot: its title, a sentence about it, and the SVG; without SVG it is left out, and the sentence says why."""

    title: str
    about: str
    svg: str = ""


def svg(draw: Callable[[Any], None], name: str) -> str:
    """What `draw` puts on matplotlib axes, as an element of a page: no fonts, links or addresses in it.

    Args:
      draw: axes -> None.
      name: of the plot, which tells its internal names from those of other plots.
    """
    import matplotlib
    from matplotlib.figure import Figure

    inks = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    style: Any = dict.fromkeys(inks, _INK) | {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 10}
    style |= {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.15}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=_SIZE, layout="constrained")
        draw(figure.subplots())
        out = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=nothing)  # pyright: ignore[reportArgumentType]
    text = out.getvalue()
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text[text.index("<svg") :])
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return text.replace(_INK, "currentColor").replace("<svg", f'<svg role="img" aria-label="{html.escape(name)}"', 1)


def style(i: int) -> dict[str, Any]:
    """Color and marker of a run."""
    return {"color": COLORS[i % len(COLORS)], "marker": _MARKERS[i % len(_MARKERS)]}


def _points(evaluations: Sequence[Sequence[Evaluated]], x: Callable[[int, Evaluated], Any], name: str) -> dict:
    """For each run the points (x, value, error) of its evaluations that have both, by x, of which the last counts.

    Args:
      evaluations: of each run, from the least thorough to the most.
      x: (number of the run, evaluation) -> x, or None.
      name: of the value.
    """
    out: dict[int, list[tuple[float, float, float]]] = {}
    for i, rows in enumerate(evaluations):
        points = {}
        for each in rows:
            value = {key[0]: value for key, value in measured([each]).items()}.get(name, Value())
            if value.value is not None and (at := x(i, each)) is not None:
                points[at] = (at, value.value, value.stderr or 0.0)
        if points:
            out[i] = [points[at] for at in sorted(points)]
    return out


def _errorbars(points: Mapping[int, list], xlabel: str, ylabel: str) -> Callable[[Any], None]:
    every = [row[0] for rows in points.values() for row in rows]
    shared = len(set(every)) < len(every)  # then points of different runs are set a little apart, to be seen

    def draw(axes):
        from matplotlib.ticker import EngFormatter

        for k, (i, rows) in enumerate(points.items()):
            x, y, error = zip(*rows)
            x = np.asarray(x) + shared * 0.012 * max(every) * (k - (len(points) - 1) / 2)
            axes.errorbar(x, y, error, capsize=3, linewidth=1.5, markersize=6, **style(i))
        if min(every) > 0 and max(every) / min(every) > _LOGARITHMIC:
            axes.set_xscale("log")
        else:
            axes.set_xlim(-0.03 * max(every), 1.08 * max(every))
        if max(every) > _LARGE:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set(xlabel=xlabel, ylabel=ylabel.replace("$", r"\$"))  # no formula begins in the name of a file

    return draw


def loss_by_log_snr(runs: Sequence[Run]) -> list[Plot]:
    """The noise-prediction error that each run has where its training ended, and how it differs from that of one."""
    title = "Loss by log-SNR"
    curves = {i: run.curves for i, run in enumerate(runs) if run.curves is not None}
    if not curves:
        about = "No run holds the loss by log-SNR; training writes it where it ends, with training.pictures = True."
        return [Plot(title, about)]
    xlabel, about = "log-SNR (data left, noise right)", "Solid: test data; dotted: training data."

    def draw(axes):
        for i, each in curves.items():
            for y, line in ((each.test, "-"), (each.train, ":")):
                axes.plot(each.log_snr, y, line, color=style(i)["color"], linewidth=1.8)
        axes.invert_xaxis()
        axes.set(xlabel=xlabel, ylabel="noise error per dimension", ylim=(0, None))

    out = [Plot(title, about, svg(draw, title))]
    first, *others = curves
    title = f"Loss by log-SNR, less that of {runs[first].name}"
    same = [i for i in others if _same_examples(runs[i], runs[first])]
    if others and not same:
        words = "is left out: the curves are not of the same examples with the same noise"
        return [*out, Plot(title, f"The difference of the losses by log-SNR {words}.")]

    def draw_apart(axes):
        for i in same:
            x = curves[i].log_snr
            x = x[(x >= curves[first].log_snr[0]) & (x <= curves[first].log_snr[-1])]
            for name, line in (("test", "-"), ("train", ":")):
                ours, theirs = (CubicSpline(each.log_snr, getattr(each, name)) for each in (curves[i], curves[first]))
                axes.plot(x, ours(x) - theirs(x), line, color=style(i)["color"], linewidth=1.8)
        axes.axhline(0.0, color=style(first)["color"], linewidth=1.2)
        axes.invert_xaxis()
        axes.set(xlabel=xlabel, ylabel="difference of the noise error")

    if same:
        about = f"{about} The examples and the noise are the same. Below 0 is better."
        out.append(Plot(title, about, svg(draw_apart, "Loss by log-SNR, differences")))
    return out


def _same_examples(run: Run, other: Run) -> bool:
    """Whether the curves of two runs are of the same examples with the same noise, and can be put on one scale."""
    a, b = run.curves, other.curves
    if a is None or b is None or not a.examples or a.examples != b.examples:
        return False
    same = run.settings.get("seed") == other.settings.get("seed") and run.about["data"] == other.about["data"]
    return same and all(len(each.log_snr) > 3 and (np.diff(each.log_snr) > 0).all() for each in (a, b))


def losses(runs: Sequence[Run]) -> Plot:
    """The loss that is minimized, by step: also of runs that are still training."""
    title = "Loss"
    curves = [[(r["step"], v) for r in run.lines if (v := number(r.get("loss"))[0]) is not None] for run in runs]
    if not any(curves):
        return Plot(title, "No run has a line in its log yet.")

    def draw(axes):
        for i, (run, rows) in enumerate(zip(runs, curves)):
            if rows:
                axes.plot(*zip(*rows), color=style(i)["color"], linewidth=1.2, alpha=0.5)
            if checked := sorted(validations(run).items()):
                axes.plot(*zip(*checked), **style(i), markersize=5, linewidth=1.5)
        values = [value for rows in curves for _, value in rows]
        low, high = np.quantile(values, [0.0, 0.97])  # the first steps would leave nothing else to see
        room = 0.1 * (high - low) or 1.0
        axes.set(xlabel="training steps", ylabel="loss", ylim=(low - room, high + room))

    about = "Line: training, average between lines of the log; markers: validation."
    if why := losses_differ(runs):
        about += f" These runs minimize different losses ({why}): compare their shapes, not their heights."
    return Plot(title, about, svg(draw, title))


def against_compute(runs: Sequence[Run]) -> list[Plot]:
    """Densities against what training had cost, once for every unit and kind of cost that is known."""
    out, every = [], [run.evaluations for run in runs]
    for name, unit in UNITS.items():
        by_axis = {
            axis: _points(every, lambda i, each, axis=axis: AXES[axis](runs[i], each.step), name) for axis in AXES
        }
        for axis, points in by_axis.items():
            words = _AXES[axis]
            if points and (axis != "steps" or not by_axis["operations"]):  # of which the steps are a multiple
                title = f"{unit} against {words}"
                out.append(Plot(title, "", svg(_errorbars(points, words, unit), title)))
    return out or [Plot("Bits/dim against compute", "No run has been evaluated with a density; --mode=eval does that.")]


def against_evaluations(runs: Sequence[Run]) -> list[Plot]:
    """Frechet distances against the evaluations that a sample takes, once for each feature function."""
    names = {key[:2] for run in runs for key in measured(run.evaluations) if key[0].startswith("frechet")}
    nfe = lambda i, each: {key[0]: v.value for key, v in measured([each]).items()}.get("sample_evaluations")
    every = [newest(run)[::-1] if run.evaluations else () for run in runs]
    out = []
    for name, words in sorted(names):
        points = _points(every, nfe, name)
        if points:
            title = f"{words}, against evaluations for each sample"
            ylabel = words.partition(",")[0] + " distance," + words.partition(",")[2]
            out.append(Plot(title, "", svg(_errorbars(points, "evaluations for each sample", ylabel), title)))
    about = "No run has a Frechet distance; --mode=eval with eval.num_samples above 0 measures it."
    return out or [Plot("Frechet distance against evaluations", about)]


def png(pixels: np.ndarray) -> str:
    """[H, W, 3] uint8 as the address of a picture that lies inside the page."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def own_png(path: Path) -> str:
    """A picture that a run has written, made smaller where it is wide.

    Raises:
      OSError, ValueError: where it cannot be read.
    """
    from PIL import Image

    with Image.open(path) as image:
        image = image.convert("RGB")
        if image.width > _WIDTH:
            image = image.resize((_WIDTH, max(round(image.height * _WIDTH / image.width), 1)), Image.Resampling.BOX)
        return png(np.asarray(image))
