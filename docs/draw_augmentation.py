"""Draws docs/images/augmentation.png: what each kind of augmentation does to one photo, a few times over.

python docs/draw_augmentation.py
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from scoreflow.augment import KINDS, augment
from scoreflow.data.images import center_crop_resize

PICTURE = Path(__file__).parent / "images" / "augmentation.png"
SIDE, DRAWS = 64, 5


def main() -> None:
    """Writes the picture."""
    photo = center_crop_resize(load_sample_image("flower.jpg"), 400, SIDE)
    x = jnp.tile(jnp.asarray(photo, jnp.float32)[None] / 127.5 - 1.0, (DRAWS, 1, 1, 1))
    widths = {"width_ratios": [1.0] * DRAWS + [0.5] + [1.0] * DRAWS}
    figure, axes = plt.subplots(7, 2 * DRAWS + 1, figsize=(8, 6), gridspec_kw=widths)
    for each in axes.flat:
        each.axis("off")
    shown = {"the photo": x[:1]}
    shown |= {name: augment(jax.random.key(1), x, probability=1.0, kinds=(name,)).x for name in KINDS}
    for i, (name, images) in enumerate(shown.items()):
        row, first = i % 7, (DRAWS + 1) * (i // 7)
        for j, image in enumerate(np.clip(np.asarray(images), -1.0, 1.0)):
            axes[row, first + j].imshow(0.5 * (image + 1.0))
        axes[row, first].set_title(name, fontsize=8, loc="left", pad=2)
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.96, 0.05, 0.25)
    figure.savefig(PICTURE, dpi=110)
    Image.open(PICTURE).convert("RGB").quantize(128).save(PICTURE, optimize=True)  # a third of the size


if __name__ == "__main__":
    main()
