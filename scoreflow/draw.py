"""Draws of a model, compiled over all devices, and the pictures made of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow.experiment import PILOT, Experiment
from scoreflow.runs import parallel, report, workdir
from scoreflow.runs.partial import NONE, PartialResults
from scoreflow.samplers import tune
from scoreflow.samplers.sampler import sampler
from scoreflow.settings import settings
from scoreflow.types import Key, Params


class Drawn(NamedTuple):
    """Samples.

    Attributes:
      x: [N, ...] as stored (levels or continuous).
      nfe: mean number of score evaluations for one.
      label: the classes that were asked for, [N] int32; None where the network knows none.
      failed: samples that were left out because they are not finite: the solver gave up, or the score failed.
    """

    x: np.ndarray
    nfe: float
    label: np.ndarray | None = None
    failed: int = 0


def initial_noise(experiment: Experiment, params: Params, keys: Key) -> jax.Array:
    """x [B, ...] at the horizon, each by its own of keys [B] from the terminal distribution."""
    terminal = experiment.model.terminal(params)
    return jax.vmap(lambda key: terminal.sample(key, (1, *experiment.space.shape))[0])(keys)


def drawn_by(experiment: Experiment) -> dict[str, Any]:
    """The settings that a sample depends on, besides its seed and label."""
    names = ("sampler.", "grid.", *(f"sampling.{name}" for name in settings(sampler)))
    return workdir.usage(experiment.config, names)


def tuned(experiment: Experiment, params: Params, partial: PartialResults = NONE) -> Experiment:
    """The experiment with a sampler whose times suit these parameters; the same one where `sampling.pilot` is 0.

    Args:
      experiment: whose sampler it is.
      params: with which samples will be drawn, of all classes in turn while the times are looked for.
      partial: where the times are kept.
    """
    usual = experiment.sampler
    if not usual.pilot:
        return experiment
    report.say(f"tuning the times of {len(usual.grid) - 1} steps on {usual.pilot} samples")

    def search() -> tune.Tuned:
        model, classes = experiment.model, experiment.data.num_classes
        given = usual.pilot, model.terminal(params), experiment.space.shape, classes if model.conditional else 0
        pilot = tune.pilot_of(params, experiment.key(PILOT), *given)
        watch = lambda numbers: report.progress(numbers, total=len(numbers), unit="tuning step")
        return tune.tune(usual, model.score, pilot, watch=watch)

    result = tune.Tuned(*partial.get("times", lambda: tune.Tuned(np.zeros(0), 0.0, 0.0, 0), search))
    report.say(
        f"mean distance of a sample to the ODE's own: {result.before:.2g} before, {result.after:.2g} with these times"
        f" ({int(result.evaluations):,} evaluations)"
    )
    return experiment._replace(sampler=usual._replace(grid=jnp.asarray(result.times)))


def over_devices(experiment: Experiment, run: Callable, *, once: bool = False) -> Callable:
    """Compiles run(params, ...), whose other arguments have a leading axis B, for the experiment's sampler."""
    if experiment.sampler.data_dependent:
        return parallel.map_devices(run, broadcast=(0,))
    return parallel.jit(run, once=once)


def make_draw(experiment: Experiment, batch_size: int, label: int = -1, *, once: bool = False) -> Callable[..., Drawn]:
    """Compiles draw(params, key, n, partial=NONE) -> Drawn, in batches of `batch_size` over all devices.

    Sample i is a function of (params, key, i): the same in batches of any size, on any number of devices, which share
    the least number from `batch_size` on that they divide. Batches that are among the partial results are not drawn
    again. Samples that are not finite are named and left out. With `once`, a short compilation matters more than speed.
    """
    parallel.check_batch(batch_size, experiment.space.shape, "sampling.batch_size")
    size = parallel.rounded_up(batch_size)
    model, space, draws = experiment.model, experiment.space, experiment.sampler

    def start(params, key, first):
        index = first + jnp.arange(size)
        keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), 3))(index)
        return initial_noise(experiment, params, keys[:, 0]), keys[:, 1], keys[:, 2]

    def run(params, x_init, keys, keys_decode, cond):
        result = draws.draw(model.score(params), keys, x_init, cond)
        decode = lambda key, x: space.decode(params, key, x[None])[0]
        finite = jnp.isfinite(result.x).reshape(result.x.shape[0], -1).all(1)
        return jax.vmap(decode)(keys_decode, result.x), result.nfe, finite

    start = parallel.jit(start, out_shardings=parallel.split())
    run = over_devices(experiment, run, once=once)

    def batch(params, key, i):
        cond = labels(experiment, size, i, label)
        return parallel.gather(
            run(params, *start(params, key, i * size), None if cond is None else parallel.shard(cond))
        )

    def draw(params: Params, key: Key, n: int, partial: PartialResults = NONE) -> Drawn:
        numbers = range(-(-n // size))
        batches = [
            partial.get(f"samples-{i}", lambda: (0, 0, 0), lambda i=i: batch(params, key, i))
            for i in report.progress(numbers, total=n, unit="sample", size=lambda i: min(size, n - i * size))
        ]
        x, nfe, finite = (np.concatenate(leaves)[:n] for leaves in zip(*batches))
        cond = labels(experiment, n, 0, label)
        if not finite.all():
            report.warn(f"{np.sum(~finite)} of {n} samples are not finite and left out: the solver or the score failed")
        return Drawn(x[finite], float(nfe.mean()), None if cond is None else cond[finite], int(np.sum(~finite)))

    return draw


def labels(experiment: Experiment, size: int, index: int, label: int) -> np.ndarray | None:
    """Labels of batch `index`: the one asked for, or all classes in turn where it is -1; None where there are none."""
    if not experiment.model.conditional:
        return None
    classes = experiment.data.num_classes
    each = np.full(size, label) if label >= 0 else np.arange(index * size, (index + 1) * size) % classes
    return each.astype(np.int32)


def picture(
    experiment: Experiment,
    x: np.ndarray,
    label: np.ndarray | None = None,
    columns: int | None = None,
) -> np.ndarray | None:
    """A grid of the samples where they are images, with the names of their classes if labels are given; else None."""
    num_levels = experiment.data.num_levels
    if not (num_levels and x.ndim == 4 and x.shape[-1] in (1, 3) and len(x)):
        return None
    names = experiment.data.class_names or range(experiment.data.num_classes)
    words = None if label is None else [str(names[i]) for i in label]
    return report.grid(x, num_levels, columns=columns, words=words)


def write_picture(
    experiment: Experiment,
    x: np.ndarray,
    path: Path,
    label: np.ndarray | None = None,
    columns: int | None = None,
) -> bool:
    """A grid of images, or a scatter plot of points in the plane next to as many test points; whether there is one."""
    if not len(x):  # no sample was finite
        return False
    if (pixels := picture(experiment, x, label, columns)) is not None:
        report.save_png(path, pixels)
    elif x.ndim == 2 and x.shape[1] == 2:
        test = experiment.data.test.x[: len(x)]
        panels = ({"test data": test} if len(test) else {}) | {"samples": x}
        report.plot_points(path, panels, float(np.abs(next(iter(panels.values()))).max() * 1.15))
    else:
        return False
    return True


def write_examples(experiment: Experiment, path: Path, num: int = 64) -> bool:
    """A contact sheet of training images, or a scatter plot of training points in the plane; whether there is one.

    So that a person sees what will be learned: upright or not, cropped how, in which colors, with which classes.
    """
    data = experiment.data
    chosen = np.sort(np.random.default_rng(0).permutation(len(data.train.x))[: 1000 if data.shape == (2,) else num])
    x, label = data.train.x[chosen], data.train.label
    if data.shape == (2,):
        report.plot_points(path, {"training data": x}, float(np.abs(x).max() * 1.15))
        return True
    if (pixels := picture(experiment, x, None if label is None else label[chosen])) is None:
        return False
    report.save_png(path, pixels)
    return True


def num_paths(experiment: Experiment) -> int:
    """Samples behind the picture of `write_trajectory`."""
    return 1000 if experiment.data.shape == (2,) else 10


def write_trajectory(experiment: Experiment, params: Params, path: Path, key: Key, columns: int = 10) -> bool:
    """Draws samples as they form, at `columns` of the sampler's times from noise to data.

    Images: ten rows, each time at its own scale, since noise of a large sigma would leave nothing else to see, or as
    the decoder sees it. Points in the plane: one panel per time. There is no picture of other data, nor where nothing
    moves: with an adaptive sampler, which keeps no trajectory, and without a score network.

    Returns:
      whether there is a picture.
    """
    points = experiment.data.shape == (2,)
    images = experiment.data.num_levels and len(experiment.data.shape) == 3 and experiment.data.shape[-1] in (1, 3)
    if experiment.sampler.data_dependent or experiment.model.network.apply is None or not (points or images):
        return False
    num = num_paths(experiment)
    keys = jax.random.split(key, parallel.rounded_up(num))

    def run(params, keys):
        keys_init, keys = jax.vmap(jax.random.split)(keys).T
        x_init = initial_noise(experiment, params, keys_init)
        return experiment.sampler.draw(experiment.model.score(params), keys, x_init, trajectory=True).trajectory

    run = parallel.jit(run, out_shardings=parallel.replicated())
    states = parallel.gather(run(params, parallel.shard(keys)))
    which = np.linspace(0, len(states) - 1, columns).round().astype(int)
    shown, times = states[which][:, :num], np.asarray(experiment.sampler.grid)[which]
    extents = np.maximum(np.abs(shown).reshape(columns, -1).max(1), 1.0)
    if points:
        panels = {f"t = {t:.2g}, in {extent:.2g}": x / extent for t, x, extent in zip(times, shown, extents)}
        report.plot_points(path, panels, 1.05)
    else:
        if experiment.space.latent is None:
            shown = shown / extents[:, None, None, None, None]
        flat = shown.swapaxes(0, 1).reshape(-1, *experiment.space.shape)
        pixels = np.asarray(experiment.space.decode(params, key, jnp.asarray(flat)))
        head = [f"t = {t:.2g}" for t in times]
        report.save_png(path, report.grid(pixels, experiment.data.num_levels, columns=columns, head=head))
    return True
