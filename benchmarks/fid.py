"""FID of the same images by this package, by torch-fidelity and by pytorch-fid, with the same weights.

    pip install -e '.[bench]' pytorch-fid
    python -m benchmarks.fid                      two sets of 100 images of 32 x 32, random weights
    python -m benchmarks.fid --count=2500 --weights=pt_inception-2015-12-05-6726825d.pth

Without a file of the published weights they are random, under the published names: He's initialization, and batch norms
whose running statistics are those of the images, so that features are finite and vary as those of a trained network do.
The images are smooth color patterns, in the second set with noise. Each row has a value of ours, one of another
program, and their relative difference:

features of torch-fidelity          the root mean square of the differences, over that of the features around their mean
features of pytorch-fid's network   the same; its input is resized and scaled as here
FID of torch-fidelity               of its features and by its formula, against ours of ours
pytorch-fid, from our statistics    the command, on two files as `--mode=stats` writes them
pytorch-fid, from our images        the command, on two folders as `sampling.files = png` writes them, against ours from
                                    the statistics that it saves (`eval.reference`)

The last numbers are further from the others, because the command resizes images to 299 x 299 between the centers of
pixels, where this package and torch-fidelity do as TensorFlow 1 did, and scales them by 2 x / 255 - 1, not by
(x - 128) / 128. Random weights enlarge such differences. Matrices of 2048 x 2048 take most of the time.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import torch
from pytorch_fid.inception import InceptionV3
from torch_fidelity import feature_extractor_inceptionv3 as module
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from scoreflow.data import Dataset, Split
from scoreflow.data.foreign import read as read_samples
from scoreflow.metrics import frechet, inception, reference_file
from scoreflow.metrics.weights import read_tensors
from scoreflow.runs import parallel
from scoreflow.sample import write_images

_SIDE, _BATCH = 32, 50


def images(count: int, seed: int, noise: float) -> np.ndarray:
    """Smooth color patterns [count, 32, 32, 3] in uint8, of few waves of random length and direction."""
    rng, grid = np.random.default_rng(seed), np.arange(_SIDE) / _SIDE
    waves = 2 * np.pi * rng.uniform(-4, 4, (count, 6, 2))
    along, down = (np.einsum("nk,s->nks", waves[..., axis], grid) for axis in (0, 1))
    phase = along[..., None] + down[:, :, None] + rng.uniform(0, 2 * np.pi, (count, 6, 1, 1))
    pattern = np.einsum("nkhw,nkc->nhwc", np.cos(phase), rng.normal(size=(count, 6, 3)))
    pattern = 128 + 40 * pattern + noise * rng.normal(size=pattern.shape)
    return pattern.clip(0, 255).round().astype(np.uint8)


def channels_first(x: np.ndarray) -> torch.Tensor:
    """[N, H, W, C] -> [N, C, H, W]."""
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def random_weights(path: Path, x: np.ndarray) -> None:
    """Writes weights under the published names; batch norms have the statistics of the images `x`."""
    load, torch.nn.Module.load_state_dict = torch.nn.Module.load_state_dict, lambda *args, **options: None
    read, torch.load = torch.load, lambda *args, **options: {}
    try:
        net = module.FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path="unused")
    finally:
        torch.nn.Module.load_state_dict, torch.load = load, read
    torch.manual_seed(0)
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.8, 1.2)
            torch.nn.init.normal_(layer.bias, 0.0, 0.2)
            layer.momentum = 1.0
    net.train()
    with torch.no_grad():
        net(channels_first(x))
    torch.save({name: value for name, value in net.state_dict().items() if "tracked" not in name}, path)


@torch.no_grad()
def of_torch_fidelity(weights: Path, x: np.ndarray) -> torch.Tensor:
    """Features [N, 2048] by torch-fidelity."""
    net = module.FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(weights))
    return torch.cat([net(batch)[0] for batch in channels_first(x).split(_BATCH)])


@torch.no_grad()
def of_pytorch_fid(x: np.ndarray) -> torch.Tensor:
    """Features [N, 2048] by pytorch-fid's network, of images that are resized and scaled as here."""
    net = InceptionV3([3], resize_input=False, normalize_input=False).eval()
    resized = torch.from_numpy(np.array(inception.resize(x.astype(np.float32)), np.float32).transpose(0, 3, 1, 2))
    return torch.cat([net((batch - 128) / 128)[0].flatten(1) for batch in resized.split(_BATCH)])


def pytorch_fid(*words: object) -> float:
    """The number that the command pytorch-fid prints."""
    command = [sys.executable, "-m", "pytorch_fid", "--device=cpu", "--num-workers=0", *map(str, words)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"pytorch-fid ended with {result.returncode}: {result.stderr[-1000:]}")
    numbers = re.findall(r"FID: +(\S+)", result.stdout)
    return float(numbers[0]) if numbers else float("nan")


def print_row(name: str, ours: float, theirs: float) -> None:
    """Two numbers and their relative difference."""
    print(f"{name:36s} ours {ours:.6g}, theirs {theirs:.6g}, difference {abs(theirs / ours - 1):.1e}", flush=True)


def difference(ours: np.ndarray, theirs: torch.Tensor) -> float:
    """Root mean square of differences of features [N, D], over that of the features around their mean."""
    return float(np.sqrt(((ours - theirs.numpy()) ** 2).mean() / ((ours - ours.mean(0)) ** 2).mean()))


def gaussian(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of features [N, D], as `--mode=stats` takes them."""
    return frechet.mean_and_covariance(frechet.update(frechet.init(features[0]), features))


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance in a file, as `eval.reference` reads them."""
    return reference_file.read(path, inception.SIZE)


def compare(weights: Path | None, count: int, folder: Path) -> None:
    """Prints the rows."""
    sets = {"data": images(count, 0, 0.0), "samples": images(count, 1, 8.0)}
    if weights is None:
        weights = folder / "random.pth"
        random_weights(weights, np.concatenate([x[:25] for x in sets.values()]))
    os.environ["TORCH_HOME"] = str(folder / "torch")  # where pytorch-fid would download the weights to
    place = folder / "torch" / "hub" / "checkpoints" / inception.NAME
    place.parent.mkdir(parents=True)
    place.symlink_to(weights.resolve())
    for name, x in sets.items():
        write_images(folder / name, x, None, "png")
    like = Dataset("images", Split(sets["data"]), Split(sets["data"]), 256)
    extract = inception.features_of(parallel.replicate(inception.fold(read_tensors(weights))), 256)
    ours = {name: extract(read_samples(folder / name, like)).pool for name in sets}
    theirs = {name: of_torch_fidelity(weights, x) for name, x in sets.items()}
    apart = difference(ours["data"], theirs["data"]), difference(ours["data"], of_pytorch_fid(sets["data"]))
    for name, value in zip(("of torch-fidelity", "of pytorch-fid's network"), apart):
        print(f"{f'features {name}':36s} difference {value:.1e}", flush=True)

    fitted = {name: gaussian(x) for name, x in ours.items()}
    value = frechet.gaussian_distance(*fitted["samples"], frechet.reference(*fitted["data"]))
    stored = [fid_features_to_statistics(theirs[name]) for name in sets]
    print_row("FID of torch-fidelity", value, fid_statistics_to_metric(*stored, False)["frechet_inception_distance"])
    files = {name: folder / f"{name}-ours.npz" for name in sets}
    for name, path in files.items():
        reference_file.write(path, *fitted[name])
    print_row("pytorch-fid, from our statistics", value, pytorch_fid(*files.values()))
    saved = {name: folder / f"{name}-theirs.npz" for name in sets}
    for name, path in saved.items():
        pytorch_fid("--save-stats", folder / name, path)
    value = frechet.gaussian_distance(*read(saved["samples"]), frechet.reference(*read(saved["data"])))
    print_row("pytorch-fid, from our images", value, pytorch_fid(*(folder / name for name in sets)))


def main() -> None:
    """Parses the flags and prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="images in each of the two sets")
    parser.add_argument("--weights", type=Path, help="the published file; random without")
    arguments = parser.parse_args()
    began = time.monotonic()
    print(f"{parallel.describe()}, {os.cpu_count()} cores, jax {jax.__version__}, PyTorch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        compare(arguments.weights, arguments.count, Path(folder))
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
