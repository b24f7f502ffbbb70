"""Sampling: compiled draws over all devices, and the pictures made of them."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow.experiment import SAMPLE, Experiment
from scoreflow.runs import parallel, report, workdir
from scoreflow.runs.partial import NONE
from scoreflow.samplers.guide import inpaint


class SamplePlan(NamedTuple):
    """What `--mode=sample` makes.

    Attributes:
      num: number of samples.
      batch_size: samples per call, over all devices.
      best: the measure whose best checkpoint is used; "" for the newest.
      label: class to sample where the network knows classes; -1 for all in turn.
      mask: None, or 0 and 1 in the shape of an example: 1 where test data are kept, 0 where they are to be filled in.
      sigma_data: root mean square of the data, for inpainting.
    """

    num: int
    batch_size: int
    best: str
    label: int
    mask: np.ndarray | None
    sigma_data: float


class Drawn(NamedTuple):
    """Samples `x` [N, ...] as stored (levels or continuous) and the mean number of score evaluations for one."""

    x: np.ndarray
    nfe: float


def noise(experiment: Experiment, params, keys: jax.Array) -> jax.Array:
    """x [B, ...] at the horizon, each by its own of keys [B] from the terminal law."""
    law = experiment.terminal(params)
    return jax.vmap(lambda key: law.sample(key, (1, *experiment.shape))[0])(keys)


def make_draw(experiment: Experiment, batch_size: int, label: int = -1) -> Callable:
    """Compiles draw(params, key, n, pieces=NONE) -> Drawn, in batches of `batch_size` over all devices.

    Sample i is a function of (params, key, i): the same in batches of any size, on any number of devices. Batches that
    `pieces` has are not drawn again.

    Raises:
      UserError: if the devices do not divide the batch.
    """
    parallel.check_divides(batch_size, "sampling.batch_size")

    def start(params, key, first):
        index = first + jnp.arange(batch_size)
        keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), 3))(index)
        return noise(experiment, params, keys[:, 0]), keys[:, 1], keys[:, 2]

    def run(params, x_init, keys, keys_decode, cond):
        result = experiment.sampler(experiment.score(params), keys, x_init, cond)
        decode = lambda key, x: experiment.decode(params, key, x[None])[0]
        finite = jnp.isfinite(result.x).reshape(result.x.shape[0], -1).all(1)
        return jax.vmap(decode)(keys_decode, result.x), result.nfe, finite

    start = parallel.jit(start, out_shardings=parallel.split())
    run = parallel.map_devices(run, broadcast=(0,)) if experiment.per_device else parallel.jit(run)

    def batch(params, key, i):
        cond = labels(experiment, batch_size, i, label)
        x, nfe, finite = parallel.gather(run(params, *start(params, key, i * batch_size), cond))
        if not finite.all():
            report.warn(f"{np.sum(~finite)} of {batch_size} samples are not finite: the solver or the score failed")
        return x, nfe

    def draw(params, key, n, pieces=NONE):
        parts = [
            pieces.get(f"samples-{i}", lambda: (0, 0), lambda i=i: batch(params, key, i))
            for i in range(-(-n // batch_size))
        ]
        x, nfe = (np.concatenate(leaves)[:n] for leaves in zip(*parts))
        return Drawn(x, float(nfe.mean()))

    return draw


def labels(experiment: Experiment, size: int, index: int, label: int):
    """Labels of one batch: those asked for, or all classes in turn; None where there are none."""
    if not experiment.conditional:
        return None
    classes = experiment.data.num_classes
    labels = np.full(size, label) if label >= 0 else np.arange(index * size, (index + 1) * size) % classes
    return parallel.shard(labels.astype(np.int32))


def picture(experiment: Experiment, x: np.ndarray) -> np.ndarray | None:
    """A grid of the samples where they are images, else None."""
    levels = experiment.data.levels
    return report.grid(x, levels) if levels and x.ndim == 4 and x.shape[-1] in (1, 3) else None


def write_picture(experiment: Experiment, x: np.ndarray, path: Path) -> None:
    """A grid of images, or a scatter plot of points in the plane beside as many test points."""
    if (pixels := picture(experiment, x)) is not None:
        report.save_png(path, pixels)
    elif x.ndim == 2 and x.shape[1] == 2:
        test = experiment.data.test.x[: len(x)]
        report.plot_points(path, {"test data": test, "samples": x}, float(np.abs(test).max() * 1.15))
    else:
        report.say(f"no picture of examples of shape {x.shape[1:]}")


def write_trajectory(experiment: Experiment, params, path: Path, key: jax.Array, columns: int = 10) -> None:
    """Draws samples as they form, at `columns` of the sampler's times from noise to data.

    Images: ten rows, each time at its own scale, since noise of a large sigma would leave nothing else to see, or as
    the decoder sees it. Points in the plane: one panel per time. An adaptive sampler keeps no trajectory, and gets no
    picture.
    """
    if experiment.per_device:
        return
    points = experiment.data.shape == (2,)
    num = 1000 if points else 10
    keys = jax.random.split(key, parallel.rounded_up(num))

    def run(params, keys):
        keys_init, keys = jax.vmap(jax.random.split)(keys).T
        x_init = noise(experiment, params, keys_init)
        return experiment.sampler(experiment.score(params), keys, x_init, None, trajectory=True).trajectory

    run = parallel.jit(run, out_shardings=parallel.replicated())
    states = parallel.gather(run(params, parallel.shard(keys)))
    shown = states[np.linspace(0, len(states) - 1, columns).round().astype(int)][:, :num]
    extents = np.maximum(np.abs(shown).reshape(columns, -1).max(1), 1.0)
    if points:
        panels = {f"{i + 1}/{columns}": x / extent for i, (x, extent) in enumerate(zip(shown, extents))}
        report.plot_points(path, panels, 1.05)
    elif experiment.data.levels and len(experiment.data.shape) == 3:
        if experiment.latent is None:
            shown = shown / extents[:, None, None, None, None]
        flat = shown.swapaxes(0, 1).reshape(-1, *experiment.shape)
        images = np.asarray(experiment.decode(params, key, jnp.asarray(flat)))
        report.save_png(path, report.grid(images, experiment.data.levels, columns=columns))


def sample(experiment: Experiment, plan: SamplePlan, folder: Path) -> None:
    """`--mode=sample`: draws with the newest checkpoint's averaged parameters; writes arrays and a picture."""
    step = workdir.newest(folder, plan.best)
    params = load_ema(experiment, folder, step, plan.best)
    key = jax.random.fold_in(experiment.key(SAMPLE), step)
    out = folder / "samples" / f"{step}-{plan.num}"
    if plan.mask is not None:
        x = _fill_in(experiment, params, plan, key)
        out = out.with_name(out.name + "-inpainted")
        report.say("rows of three: test image, what was kept of it, filled in")
    else:
        drawn = make_draw(experiment, plan.batch_size, plan.label)(params, key, plan.num)
        x = drawn.x
        report.say(f"{len(x)} samples, {drawn.nfe:.0f} score evaluations each")
    if parallel.is_main():
        out.parent.mkdir(parents=True, exist_ok=True)
        np.save(out.with_suffix(".npy"), x)
    write_picture(experiment, x[:400], out.with_suffix(".png"))
    report.say(f"wrote {out.with_suffix('.npy')} and {out.with_suffix('.png')}")


def load_ema(experiment: Experiment, folder: Path, step: int, best: str = ""):
    """The averaged parameters of a checkpoint, or of the best by a measure, on all devices."""
    template = jax.eval_shape(lambda: experiment.network.init(jax.random.key(0), (1, *experiment.shape)))
    return workdir.averaged(folder, step, template, best)


def _fill_in(experiment: Experiment, params, plan: SamplePlan, key: jax.Array) -> np.ndarray:
    """[3 num, ...]: test data, the part that is kept, and that part with the rest drawn given it, in turn."""
    size = parallel.rounded_up(plan.num)
    stored = np.resize(experiment.data.test.x, (size, *experiment.data.shape))
    key_path, key_encode = jax.random.split(key)

    def run(params, keys, known):
        score = inpaint(experiment.process, experiment.score(params), known, plan.mask, sigma_data=plan.sigma_data)
        keys_init, keys = jax.vmap(jax.random.split)(keys).T
        x_init = noise(experiment, params, keys_init)
        return experiment.decode(params, key_path, experiment.sampler(score, keys, x_init, None).x)

    run = parallel.map_devices(run, broadcast=(0,)) if experiment.per_device else parallel.jit(run)
    known = parallel.shard(np.asarray(experiment.encode(params, key_encode, stored)))
    filled = parallel.gather(run(params, parallel.shard(jax.random.split(key_path, size)), known))
    kept = np.where(plan.mask == 1, stored, np.zeros_like(stored))
    return np.stack([stored, kept, filled], axis=1)[: plan.num].reshape(-1, *stored.shape[1:])
