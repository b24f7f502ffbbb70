"""`--mode=sample`: draws of a trained model, or test images with a part filled in."""

import os
import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow.data import describe
from scoreflow.data.images import with_channels
from scoreflow.draw import Drawn, drawn_by, initial_noise, make_draw, over_devices, tuned, write_picture
from scoreflow.experiment import SAMPLE, Experiment, load_newest
from scoreflow.runs import files, parallel, report, workdir
from scoreflow.runs.errors import RunError, UserError
from scoreflow.runs.partial import PartialResults
from scoreflow.samplers import tune
from scoreflow.samplers.guide import inpaint
from scoreflow.types import Count, Index, Key, Params, Seed

_SHOWN = 400  # samples in the picture
_THREADS = 8  # that write images
_COLUMNS = 9  # of a picture of triples
_FILLED = {  # top, bottom, left and right end of what is filled in, as fractions of the sides
    "bottom": (0.5, 1.0, 0.0, 1.0),
    "right": (0.0, 1.0, 0.5, 1.0),
    "center": (0.25, 0.75, 0.25, 0.75),
}


class SampleOptions(NamedTuple):
    """What `--mode=sample` makes.

    Attributes:
      num: Number of samples.
      batch_size: Samples per call, over all devices.
      seed: Seed of these samples; the run's own seed is not changed by it.
      label: Class to sample where the network knows classes; -1 for all in turn.
      inpaint: Part of test images that is filled in; none draws whole samples.
      files: What other programs read, written in addition: png, a folder with a file for each image, or npz, one file
        with all of them as `arr_0`.
      best: the measure whose best checkpoint is used; "" for the newest.
    """

    num: Count = 100
    batch_size: Count = 100
    seed: Seed = 0
    label: Index = -1
    inpaint: Literal["none", "bottom", "right", "center"] = "none"
    files: Literal["none", "png", "npz"] = "none"
    best: str = ""


def sample(experiment: Experiment, options: SampleOptions, folder: Path) -> np.ndarray:
    """Draws with a checkpoint's averaged parameters; writes the samples as an array and as a picture.

    They go to `samples/<step>-<num>.npy`, `.png` and, where the network knows classes, `.labels.npy`; `.json` says how
    they were made. Where samples of that name were made otherwise, these have a further number. See `write_images` for
    what other programs read.

    Returns:
      the samples as stored, [num, ...]; for inpainting [3 num, ...], see `fill_in`.

    Raises:
      RunError: if no sample is finite.
      UserError: if files of images are asked for and samples are none.
    """
    data = experiment.data
    if options.files != "none" and not (data.num_levels and len(data.shape) == 3 and data.shape[-1] in (1, 3)):
        words = f"needs images of 1 or 3 channels of levels, and {data.name} has examples of shape {data.shape}"
        raise UserError(f"sampling.files = {options.files} {words}")
    step, checkpoint, params = load_newest(experiment, folder, options.best)
    key = jax.random.fold_in(experiment.key(SAMPLE), step)
    key = jax.random.fold_in(key, options.seed) if options.seed else key
    settings = workdir.usage(experiment.config, ("sampling.", "sampler.", "grid.", "checkpoint"))
    settings.pop("sampling.files", None)  # the same samples in another form
    made = {"step": step, "checkpoint": checkpoint, "settings": settings}
    experiment = tuned(experiment, params, _kept_times(experiment, checkpoint, folder))
    if options.inpaint != "none":
        made["data"] = describe(data)
        drawn = fill_in(experiment, params, options, key)
        report.say("in threes: a test image, what was kept of it with the rest gray, and the rest filled in")
    else:
        drawn = make_draw(experiment, options.batch_size, options.label)(params, key, options.num)
        report.say(f"{len(drawn.x)} samples, {drawn.nfe:.0f} score evaluations each")
    if not len(drawn.x):
        raise RunError(f"none of {options.num} samples is finite; nothing is written")
    stem = "-".join([str(step), *([options.best] if options.best else []), str(options.num)])
    stem += "-inpainted" if options.inpaint != "none" else ""
    out = workdir.numbered(made, folder / "samples", stem)
    array, picture = out.with_name(f"{out.name}.npy"), out.with_name(f"{out.name}.png")
    if parallel.is_main():
        files.save_npy(array, drawn.x)
        if drawn.label is not None:
            files.save_npy(out.with_name(f"{out.name}.labels.npy"), drawn.label)
    label = None if drawn.label is None else drawn.label[:_SHOWN]
    shown, columns = drawn.x[:_SHOWN], None
    if options.inpaint != "none":
        shown, columns = marked(experiment, drawn.x, mask_of(options.inpaint, experiment.data.shape)), _COLUMNS
        label = None if drawn.label is None else drawn.label[: len(shown)]
    pictured = write_picture(experiment, shown, picture, label, columns)
    report.say(f"wrote {array}" + (f" and {picture}" if pictured else ""))
    if options.files != "none":
        kept = slice(None) if options.inpaint == "none" else slice(2, None, 3)  # of triples, what was filled in
        pixels = report.eight_bits(drawn.x[kept], experiment.data.num_levels)
        written = write_images(out, pixels, None if drawn.label is None else drawn.label[kept], options.files)
        report.say(f"wrote {len(pixels)} images to {written}")
    return drawn.x


def _kept_times(experiment: Experiment, checkpoint: str, folder: Path) -> PartialResults:
    """Where tuned times of a checkpoint are kept; how many samples are drawn, and with which seed, does not matter."""
    known = [checkpoint, drawn_by(experiment), workdir.versions(), tune.VERSION]
    return PartialResults(folder / "samples" / "times" / workdir.digest_of(known))


def write_images(out: Path, pixels: np.ndarray, label: np.ndarray | None, form: Literal["png", "npz"]) -> Path:
    """Writes images [N, H, W, 1 or 3] in uint8 for other programs, from one process.

    As `png`, the folder `out` has `000000.png`, `000001.png` and so on, as pytorch-fid, clean-fid and EDM read them. As
    `npz`, `<out>.npz` has `arr_0` [N, H, W, 3] and, where there are labels, `arr_1` [N], as guided-diffusion's
    evaluator does.

    Returns:
      the path of the folder or file.
    """
    path = out if form == "png" else out.with_name(f"{out.name}.npz")
    if not parallel.is_main():
        return path
    if form == "npz":
        with files.replacing(path) as scratch:
            np.savez(scratch, with_channels(pixels, 3), *([] if label is None else [label]))
        return path
    from PIL import Image

    scratch = out.with_name(f".{out.name}-{uuid.uuid4().hex[:12]}")
    scratch.mkdir(parents=True)

    def save(i: int) -> None:
        image = pixels[i]
        Image.fromarray(image if image.shape[-1] == 3 else image[..., 0]).save(scratch / f"{i:06d}.png")

    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(save, range(len(pixels))))
        path.mkdir(exist_ok=True)
        for image in scratch.iterdir():
            os.replace(image, path / image.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def mask_of(inpaint: str, shape: tuple[int, ...]) -> np.ndarray:
    """1 where a test image [H, W, C] is kept, 0 where it is filled in."""
    height, width, _ = shape
    top, bottom, left, right = (round(f * n) for f, n in zip(_FILLED[inpaint], (height, height, width, width)))
    mask = np.ones(shape, np.float32)
    mask[top:bottom, left:right] = 0.0
    return mask


def marked(experiment: Experiment, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The first triples of `fill_in` for a picture: what was removed is gray in the second of each, not black."""
    triples = x[: 3 * (_SHOWN // 3)].reshape(-1, 3, *x.shape[1:]).copy()
    gray = np.full_like(triples[:, 1], experiment.data.num_levels // 2)
    triples[:, 1] = np.where(mask == 1, triples[:, 1], gray)
    return triples.reshape(-1, *x.shape[1:])


def fill_in(experiment: Experiment, params: Params, options: SampleOptions, key: Key) -> Drawn:
    """x [3 num, ...]: test data, the part that is kept, and that part with the rest drawn given it, in turn.

    Where the network knows classes, it fills in the class that is asked for, or else that of the test image. Image i is
    a function of (params, key, i), so the same in batches of any size.
    """
    data, model, space, num = experiment.data, experiment.model, experiment.space, options.num
    mask, size = mask_of(options.inpaint, data.shape), parallel.rounded_up(min(options.batch_size, num))
    rows = np.arange(num) % len(data.test.x)
    cond = None
    if model.conditional:
        own = cast(np.ndarray, data.test.label)[rows]
        cond = (np.full(num, options.label) if options.label >= 0 else own).astype(np.int32)

    def one(run: Callable, params: Params, keys: Key, x: jax.Array) -> jax.Array:
        return jax.vmap(lambda key, x: run(params, key, x[None])[0])(keys, x)

    def run(params, keys, stored, cond):
        keys_init, keys, keys_encode, keys_decode = jax.vmap(lambda key: jax.random.split(key, 4))(keys).T
        known = one(space.encode, params, keys_encode, stored)
        score = inpaint(
            model.process, model.score(params), known, jnp.asarray(mask), sigma_data=model.options.sigma_data
        )
        result = experiment.sampler.draw(score, keys, initial_noise(experiment, params, keys_init), cond)
        finite = jnp.isfinite(result.x).reshape(len(keys), -1).all(1)
        return one(space.decode, params, keys_decode, result.x), result.nfe, finite

    run = over_devices(experiment, run)

    def batch(i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        numbers = np.minimum(np.arange(i, i + size), num - 1)  # the last batch is as large as the others
        keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.asarray(numbers))
        inputs = keys, data.test.x[rows[numbers]], None if cond is None else cond[numbers]
        return parallel.gather(run(params, *parallel.shard(inputs)))

    counts = report.progress(range(0, num, size), total=num, unit="image", size=lambda i: min(size, num - i))
    filled, nfe, finite = (np.concatenate(leaves)[:num] for leaves in zip(*[batch(i) for i in counts]))
    good = np.flatnonzero(finite)
    if failed := num - len(good):
        report.warn(f"{failed} of {num} samples are not finite and left out: the solver or the score failed")
    stored = data.test.x[rows[good]]
    kept = np.where(mask == 1, stored, np.zeros_like(stored))
    x = np.stack([stored, kept, filled[good]], axis=1).reshape(-1, *data.shape)
    return Drawn(x, float(nfe.mean()), None if cond is None else np.repeat(cond[good], 3), failed)
