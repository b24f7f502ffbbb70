"""Draws of a model, compiled over all devices, and the pictures made of them."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow.experiment import Experiment
from scoreflow.runs import parallel, report
from scoreflow.runs.partial import NONE, PartialResults
from scoreflow.types import Key, Params


class Drawn(NamedTuple):
    """Samples `x` [N, ...] as stored (levels or continuous) and the mean number of score evaluations for one."""

    x: np.ndarray
    nfe: float


def initial_noise(experiment: Experiment, params: Params, keys: Key) -> jax.Array:
    """x [B, ...] at the horizon, each by its own of keys [B] from the terminal distribution."""
    terminal = experiment.model.terminal(params)
    return jax.vmap(lambda key: terminal.sample(key, (1, *experiment.space.shape))[0])(keys)


def over_devices(experiment: Experiment, run: Callable) -> Callable:
    """Compiles run(params, ...), whose other arguments have a leading axis B, for the experiment's sampler."""
    if experiment.sampler.data_dependent:
        return parallel.map_devices(run, broadcast=(0,))
    return parallel.jit(run)


def make_draw(experiment: Experiment, batch_size: int, label: int = -1) -> Callable[..., Drawn]:
    """Compiles draw(params, key, n, partial=NONE) -> Drawn, in batches of `batch_size` over all devices.

    Sample i is a function of (params, key, i): the same in batches of any size, on any number of devices. Batches that
    are among the partial results are not drawn again.

    Raises:
      UserError: if the devices do not divide the batch.
    """
    parallel.check_divides(batch_size, "sampling.batch_size")
    model, space, sampler = experiment.model, experiment.space, experiment.sampler

    def start(params, key, first):
        index = first + jnp.arange(batch_size)
        keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), 3))(index)
        return initial_noise(experiment, params, keys[:, 0]), keys[:, 1], keys[:, 2]

    def run(params, x_init, keys, keys_decode, cond):
        result = sampler.draw(model.score(params), keys, x_init, cond)
        decode = lambda key, x: space.decode(params, key, x[None])[0]
        finite = jnp.isfinite(result.x).reshape(result.x.shape[0], -1).all(1)
        return jax.vmap(decode)(keys_decode, result.x), result.nfe, finite

    start = parallel.jit(start, out_shardings=parallel.split())
    run = over_devices(experiment, run)

    def batch(params, key, i):
        cond = labels(experiment, batch_size, i, label)
        x, nfe, finite = parallel.gather(run(params, *start(params, key, i * batch_size), cond))
        if not finite.all():
            report.warn(f"{np.sum(~finite)} of {batch_size} samples are not finite: the solver or the score failed")
        return x, nfe

    def draw(params: Params, key: Key, n: int, partial: PartialResults = NONE) -> Drawn:
        batches = [
            partial.get(f"samples-{i}", lambda: (0, 0), lambda i=i: batch(params, key, i))
            for i in range(-(-n // batch_size))
        ]
        x, nfe = (np.concatenate(leaves)[:n] for leaves in zip(*batches))
        return Drawn(x, float(nfe.mean()))

    return draw


def labels(experiment: Experiment, size: int, index: int, label: int) -> jax.Array | None:
    """Labels of one batch: the one asked for, or all classes in turn where it is -1; None where there are none."""
    if not experiment.model.conditional:
        return None
    classes = experiment.data.num_classes
    each = np.full(size, label) if label >= 0 else np.arange(index * size, (index + 1) * size) % classes
    return parallel.shard(each.astype(np.int32))


def picture(experiment: Experiment, x: np.ndarray) -> np.ndarray | None:
    """A grid of the samples where they are images, else None."""
    num_levels = experiment.data.num_levels
    return report.grid(x, num_levels) if num_levels and x.ndim == 4 and x.shape[-1] in (1, 3) else None


def write_picture(experiment: Experiment, x: np.ndarray, path: Path) -> None:
    """A grid of images, or a scatter plot of points in the plane next to as many test points."""
    if (pixels := picture(experiment, x)) is not None:
        report.save_png(path, pixels)
    elif x.ndim == 2 and x.shape[1] == 2:
        test = experiment.data.test.x[: len(x)]
        report.plot_points(path, {"test data": test, "samples": x}, float(np.abs(test).max() * 1.15))
    else:
        report.say(f"no picture of examples of shape {x.shape[1:]}")


def write_trajectory(experiment: Experiment, params: Params, path: Path, key: Key, columns: int = 10) -> None:
    """Draws samples as they form, at `columns` of the sampler's times from noise to data.

    Images: ten rows, each time at its own scale, since noise of a large sigma would leave nothing else to see, or as
    the decoder sees it. Points in the plane: one panel per time. An adaptive sampler keeps no trajectory, and gets no
    picture.
    """
    if experiment.sampler.data_dependent:
        return
    points = experiment.data.shape == (2,)
    num = 1000 if points else 10
    keys = jax.random.split(key, parallel.rounded_up(num))

    def run(params, keys):
        keys_init, keys = jax.vmap(jax.random.split)(keys).T
        x_init = initial_noise(experiment, params, keys_init)
        return experiment.sampler.draw(experiment.model.score(params), keys, x_init, trajectory=True).trajectory

    run = parallel.jit(run, out_shardings=parallel.replicated())
    states = parallel.gather(run(params, parallel.shard(keys)))
    shown = states[np.linspace(0, len(states) - 1, columns).round().astype(int)][:, :num]
    extents = np.maximum(np.abs(shown).reshape(columns, -1).max(1), 1.0)
    if points:
        panels = {f"{i + 1}/{columns}": x / extent for i, (x, extent) in enumerate(zip(shown, extents))}
        report.plot_points(path, panels, 1.05)
    elif experiment.data.num_levels and len(experiment.data.shape) == 3:
        if experiment.space.latent is None:
            shown = shown / extents[:, None, None, None, None]
        flat = shown.swapaxes(0, 1).reshape(-1, *experiment.space.shape)
        images = np.asarray(experiment.space.decode(params, key, jnp.asarray(flat)))
        report.save_png(path, report.grid(images, experiment.data.num_levels, columns=columns))
