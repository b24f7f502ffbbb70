"""Color images of CIFAR-10's size where nothing can be downloaded: 32x32 crops of the two photos of scikit-learn.

    python -m benchmarks.photos --out=runs/photos.npy
    python main.py --config=configs/fashion_vp.py --workdir=runs/photos --config.data.name=arrays \\
      --config.data.path=runs/photos.npy --config.training.steps=600 --config.eval.features=pixels
    python -m benchmarks.likelihood --workdir=runs/photos --num=60

The crops overlap, so a held-out crop is no unseen image. That does not matter here, where solvers are compared.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from sklearn.datasets import load_sample_images


def crops(images: list[np.ndarray], size: int = 32, stride: int = 8) -> np.ndarray:
    """All crops of images [H, W, 3] at multiples of a stride, [N, size, size, 3] uint8."""
    every = [sliding_window_view(image, (size, size), axis=(0, 1))[::stride, ::stride] for image in images]
    return np.concatenate([np.moveaxis(each, 2, -1).reshape(-1, size, size, 3) for each in every])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/photos.npy"), help="the array that is written")
    path = parser.parse_args().out
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = crops(load_sample_images().images)
    rows = rows[np.random.default_rng(0).permutation(len(rows))]  # neighbors are alike, and benchmarks take the first
    np.save(path, rows)
    print(f"wrote {path}: {len(rows)} crops")


if __name__ == "__main__":
    main()
