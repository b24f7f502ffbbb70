"""Sample grids of runs side by side, from the same noise where that can be had in time."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from scoreflow import draw
from scoreflow.comparison.measures import examples_per_second
from scoreflow.comparison.pictures import own_png, png, style, svg
from scoreflow.comparison.read import Run, Warn
from scoreflow.experiment import Experiment, load_newest
from scoreflow.runs import report

Opener = Callable[[Path], Experiment]
"""The experiment of the run in a folder; raises UserError where it cannot be had."""

NUM = 16
"""Samples that are drawn of each run."""

_POINTS = 500  # in the plane
_COLUMNS = 4
_WIDTH = 320  # pixels of a grid, at least
_SECONDS = 12.0  # in which grids after the first two are begun
_MOST = 3_000_000  # parameters of a network whose sampler is compiled in that time
_OPERATIONS = 1e11  # of all samples of a run, which a processor does in seconds
_PER_STEP = 3  # evaluations of the network in whose time a training step is done, for each example
# Settings on which noise at the horizon depends, for one key and one shape of the data; and those that bring the key.
_NOISE = ("terminal.", "latent.", "vae.")
_PLACES = ("seed", "sampling.num", "data.conditional")


class Grid(NamedTuple):
    """A run's samples: an `address` of a picture or an `svg`, and a remark; with neither there is no picture."""

    address: str = ""
    svg: str = ""
    remark: str = ""


class Grids(NamedTuple):
    """One grid for each run, and a sentence about all of them."""

    grids: list[Grid]
    about: str


def own_picture(run: Run) -> tuple[int, Path] | None:
    """The newest picture of samples that training has written, and its step."""
    folder = run.folder / "samples"
    pictures = {int(path.stem): path for path in folder.glob("*.png") if path.stem.isdigit()} if folder.is_dir() else {}
    return max(pictures.items(), default=None)


def same_noise(runs: Sequence[Run], more: tuple[str, ...] = ()) -> bool:
    """Whether samples of the runs begin with the same noise if their keys are the same.

    Args:
      runs: of which the shape of the data and the distribution at the horizon must be the same.
      more: beginnings of the names of settings that must be the same, too.
    """
    kept = [{name: value for name, value in run.settings.items() if name.startswith((*_NOISE, *more))} for run in runs]
    shapes = [run.about["data"].get("shape") for run in runs]
    return all(rows == kept[0] and rows for rows in kept) and all(shape == shapes[0] and shape for shape in shapes)


def side_by_side(runs: Sequence[Run], open_run: Opener | None, warn: Warn) -> Grids:
    """The runs' own pictures where these are from the same noise, or samples that are drawn now.

    Args:
      runs: what to show.
      open_run: see `Opener`; None draws nothing.
      warn: is told of what cannot be read or drawn.
    """
    pictures = [own_picture(run) for run in runs]
    same_version = all(run.about["versions"] == runs[0].about["versions"] for run in runs)
    as_they_are = same_version and same_noise(runs, _PLACES)
    if all(pictures) and (as_they_are or not same_noise(runs)):
        about = "Pictures that training wrote. The same place in each of them begins with the same noise."
        if not as_they_are:
            about = (
                "Pictures that training wrote, from noise of their own: shapes or distributions of the noise differ."
            )
        grids = [_own(run, picture, warn) for run, picture in zip(runs, pictures)]
        return Grids(grids, about if len(runs) > 1 else "The picture that training wrote last.")
    began, out, drawn = time.monotonic(), [], []
    for run, picture in zip(runs, pictures):
        grid, words = None, "it takes too long here"
        try:
            in_time = len(drawn) < 2 or time.monotonic() - began < _SECONDS  # one alone compares nothing
            if open_run is not None and in_time and _is_quick(run):
                grid = sampled(run, open_run(run.folder), len(out))
        except Exception as error:  # such as a run without a checkpoint; none is worth losing the comparison
            words = (str(error).splitlines() or [type(error).__name__])[0]
            warn(f"{run.name}: no samples are drawn: {words}")
        drawn += [run] if grid is not None and (grid.address or grid.svg) else []
        out.append(grid or _own(run, picture, warn, f"not from the same noise, since none are drawn: {words}"))
    about = "Drawn now, each by the run's own sampler. The same place in each picture begins with the same noise."
    if not same_noise(drawn):
        about = "Drawn now by the run's own samplers, from noise of their own: shapes or distributions of it differ."
    return Grids(out, about if len(drawn) > 1 else "")


def _is_quick(run: Run) -> bool:
    """Whether samples can be drawn in seconds, as far as the run says how large and how fast its network is."""
    parameters = _parameters(run) if run.cost.parameters is None else run.cost.parameters
    steps, batch = (run.settings.get(name) for name in ("sampling.steps", "training.batch_size"))
    if parameters > _MOST or not isinstance(steps, int) or not isinstance(batch, int) or batch < 1:
        return parameters <= _MOST
    examples = NUM * steps / _PER_STEP  # that training would take in that time
    if run.cost.operations is not None:
        return examples / batch * run.cost.operations <= _OPERATIONS
    rate = examples_per_second(run)
    return rate is None or examples / rate < _SECONDS / 2


def _parameters(run: Run) -> float:
    """About how many parameters a run has, by the size of a checkpoint: each is there four times, with its moments."""
    steps = [path for path in (run.folder / "checkpoints").glob("*") if path.name.isdigit()]
    sizes = [sum(file.stat().st_size for file in step.rglob("*") if file.is_file()) for step in steps]
    return max(sizes, default=0) / 16


def _own(run: Run, picture: tuple[int, Path] | None, warn: Warn, remark: str = "") -> Grid:
    """The run's own picture; without one, words."""
    if picture is None:
        return Grid(remark="there is no picture of samples yet")
    step, path = picture
    try:
        return Grid(own_png(path), remark=f"step {step:,}" + (f"; {remark}" if remark else ""))
    except (OSError, ValueError) as error:
        warn(f"{path} cannot be read and is left out: {error}")
        return Grid(remark="its picture cannot be read")


def samples(experiment: Experiment, folder: Path, num: int) -> tuple[int, draw.Drawn]:
    """The step of a run's newest checkpoint, and samples of it that depend on nothing but the checkpoint and `num`.

    Their noise is that of key 0, whatever the seed of the run. So it is the same for all runs whose data have the same
    shape and whose terminal distribution is the same, up to its scale.
    """
    step, _, params = load_newest(experiment, folder)
    return step, draw.make_draw(experiment, num, once=True)(params, jax.random.key(0), num)


def sampled(run: Run, experiment: Experiment, i: int) -> Grid:
    """A grid of images, or points in the plane, of the i-th run; without a picture where the data are neither."""
    plane = experiment.data.shape == (2,)
    if not plane and draw.picture(experiment, np.zeros((1, *experiment.data.shape), np.uint8)) is None:
        return Grid(remark=f"examples of shape {experiment.data.shape} have no picture")
    report.say(f"drawing samples of {run.name}")
    step, drawn = samples(experiment, run.folder, _POINTS if plane else NUM)
    remark = f"step {step:,}, {drawn.nfe:.0f} evaluations each"
    if not len(drawn.x):
        return Grid(remark="no sample is finite")
    if plane:
        return Grid(svg=_scatter(drawn.x, experiment.data.test.x[:_POINTS], run.name, i), remark=remark)
    pixels = report.grid(drawn.x, experiment.data.num_levels, columns=_COLUMNS, min_width=_WIDTH)
    return Grid(png(pixels), remark=remark)


def _scatter(x: np.ndarray, test: np.ndarray, name: str, i: int) -> str:
    extent = float(np.abs(test if len(test) else x).max() * 1.15)

    def dots(axes: Any) -> None:
        axes.plot(test[:, 0], test[:, 1], ".", color="#888888", markersize=3, alpha=0.4, markeredgewidth=0)
        axes.plot(x[:, 0], x[:, 1], ".", color=style(i)["color"], markersize=4, alpha=0.8, markeredgewidth=0)
        axes.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal")

    return svg(dots, f"samples {i}")
