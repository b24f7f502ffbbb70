"""`--mode=sample`: draws of a trained model, or test images with a part filled in."""

from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow.draw import initial_noise, make_draw, over_devices, write_picture
from scoreflow.experiment import SAMPLE, Experiment, load_params
from scoreflow.runs import parallel, report, workdir
from scoreflow.samplers.guide import inpaint
from scoreflow.types import Count, Index, Key, Params

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
      label: Class to sample where the network knows classes; -1 for all in turn.
      inpaint: Part of test images that is filled in; none draws whole samples.
      best: the measure whose best checkpoint is used; "" for the newest.
    """

    num: Count = 100
    batch_size: Count = 100
    label: Index = -1
    inpaint: Literal["none", "bottom", "right", "center"] = "none"
    best: str = ""


def sample(experiment: Experiment, options: SampleOptions, folder: Path) -> np.ndarray:
    """Draws with a checkpoint's averaged parameters; writes the samples as an array and as a picture.

    Returns:
      the samples as stored, [num, ...]; for inpainting [3 num, ...], see `fill_in`.
    """
    step = workdir.newest(folder, options.best)
    params = load_params(experiment, folder, step, options.best)
    key = jax.random.fold_in(experiment.key(SAMPLE), step)
    out = folder / "samples" / f"{step}-{options.num}"
    if options.inpaint != "none":
        x = fill_in(experiment, params, options, key)
        out = out.with_name(out.name + "-inpainted")
        report.say("rows of three: test image, what was kept of it, filled in")
    else:
        drawn = make_draw(experiment, options.batch_size, options.label)(params, key, options.num)
        x = drawn.x
        report.say(f"{len(x)} samples, {drawn.nfe:.0f} score evaluations each")
    if parallel.is_main():
        out.parent.mkdir(parents=True, exist_ok=True)
        np.save(out.with_suffix(".npy"), x)
    write_picture(experiment, x[:400], out.with_suffix(".png"))
    report.say(f"wrote {out.with_suffix('.npy')} and {out.with_suffix('.png')}")
    return x


def mask_of(inpaint: str, shape: tuple[int, ...]) -> np.ndarray:
    """1 where a test image [H, W, C] is kept, 0 where it is filled in."""
    height, width, _ = shape
    top, bottom, left, right = (round(f * n) for f, n in zip(_FILLED[inpaint], (height, height, width, width)))
    mask = np.ones(shape, np.float32)
    mask[top:bottom, left:right] = 0.0
    return mask


def fill_in(experiment: Experiment, params: Params, options: SampleOptions, key: Key) -> np.ndarray:
    """[3 num, ...]: test data, the part that is kept, and that part with the rest drawn given it, in turn."""
    data, model, space = experiment.data, experiment.model, experiment.space
    mask, size = mask_of(options.inpaint, data.shape), parallel.rounded_up(options.num)
    stored = np.resize(data.test.x, (size, *data.shape))
    key_path, key_encode = jax.random.split(key)

    def run(params, keys, known):
        given, sigma_data = jnp.asarray(mask), model.options.sigma_data
        score = inpaint(model.process, model.score(params), known, given, sigma_data=sigma_data)
        keys_init, keys = jax.vmap(jax.random.split)(keys).T
        x_init = initial_noise(experiment, params, keys_init)
        return space.decode(params, key_path, experiment.sampler.draw(score, keys, x_init).x)

    run = over_devices(experiment, run)
    known = parallel.shard(np.asarray(space.encode(params, key_encode, jnp.asarray(stored))))
    filled = parallel.gather(run(params, parallel.shard(jax.random.split(key_path, size)), known))
    kept = np.where(mask == 1, stored, np.zeros_like(stored))
    return np.stack([stored, kept, filled], axis=1)[: options.num].reshape(-1, *stored.shape[1:])
