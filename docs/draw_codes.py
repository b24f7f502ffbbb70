"""Draws docs/images/codes.png: test digits, their latent codes and back, and what lies between two codes.

python main.py --config=configs/vp_digits.py --mode=train
python docs/draw_codes.py runs/vp_digits
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from scoreflow import configure
from scoreflow.evaluators import density
from scoreflow.experiment import load_params
from scoreflow.likelihood import decode, encode, interpolate
from scoreflow.runs import workdir

PICTURE = Path(__file__).parent / "images" / "codes.png"
PAIRS, BETWEEN = 4, 9


def main() -> None:
    """Prints how well digits are decoded from their codes, and writes the picture."""
    folder = Path(sys.argv[1])
    config, _ = configure.of_run(workdir.stored_settings(folder))
    experiment = configure.experiment(config, str(folder))
    model, params = experiment.model, load_params(experiment, folder, workdir.newest(folder))
    context = configure.evaluation(config).context(experiment, params)
    gaussian, chosen = density.choose(context)
    score, known = model.score(params), {"gaussian": gaussian, "t": chosen.t, "order": int(chosen.order)}

    there = jax.jit(lambda x: encode(model.process, score, x, **known))
    back = jax.jit(lambda z: decode(model.process, score, z, **known))
    x = context.examples(count=100).x
    codes = there(jnp.asarray(x))
    apart = np.sqrt(np.mean((np.asarray(back(codes)) - x) ** 2))
    print(
        f"{len(chosen.t)} evaluations there and as many back: rms {apart:.1e} apart, in units where digits have [-1, 1]"
    )

    labels = np.asarray(experiment.data.test.label[:100])
    others = [(i, int(np.flatnonzero(labels != labels[i])[i])) for i in range(PAIRS)]
    rows = []
    for i, j in others:
        share = np.linspace(0.0, 1.0, BETWEEN)[:, None, None, None]
        rows += [(1.0 - share) * x[i] + share * x[j], np.asarray(back(interpolate(codes[i], codes[j], BETWEEN)))]
    figure, axes = plt.subplots(2 * PAIRS, BETWEEN, figsize=(BETWEEN * 0.7, 2 * PAIRS * 0.7))
    for k, row in enumerate(rows):
        for each, image in zip(axes[k], row):
            each.imshow(image[..., 0], cmap="gray_r", vmin=-1.0, vmax=1.0)
            each.set_xticks([])
            each.set_yticks([])
        axes[k, 0].set_ylabel(("pixels", "codes")[k % 2], fontsize=8)
    figure.tight_layout(pad=0.3)
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
