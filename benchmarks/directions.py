"""How many directions of the data's covariance a likelihood needs: evaluations and bits/dim of a trained run.

    python -m benchmarks.photos --out=runs/photos.npy       # and train on them, as that file says
    python -m benchmarks.directions --workdir=runs/photos --directions 875 256 64

For every number of directions a Gaussian is fitted to the run's training images, a pilot chooses the nodes, and the
same `--num` test images are scored with the same noise and probes. Differences to the first number are paired.
"""

import argparse
import time
from pathlib import Path

import numpy as np

import scoreflow
from scoreflow import configure, gaussian
from scoreflow.runs import workdir


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=Path("runs/photos"))
    parser.add_argument("--directions", type=int, nargs="+", default=[875, 256, 64])
    parser.add_argument("--num", type=int, default=160, help="test images")
    args = parser.parse_args()
    config, _ = configure.of_run(workdir.stored_settings(args.workdir))
    data, model = configure.dataset(config), scoreflow.load(args.workdir)
    gaussian.FULL = 1  # a number of directions is given for any number of dimensions
    first: np.ndarray | None = None
    print("directions  evaluations  seconds  bits/dim         difference")
    for count in args.directions:
        gaussian.RANK = count
        prepared = model.with_data(data.train.x)
        assert prepared.prepared is not None
        prepared.bits_per_dim(data.test.x[:2])  # compiles
        began = time.monotonic()
        bits = prepared.bits_per_dim(data.test.x[: args.num])
        seconds = time.monotonic() - began
        first = bits if first is None else first
        words = [f"{each.mean():.4f} ± {each.std() / len(each) ** 0.5:.4f}" for each in (bits, bits - first)]
        print(f"{count:10} {prepared.prepared.evaluations:12} {seconds:8.1f}  {words[0]}  {words[1]}", flush=True)


if __name__ == "__main__":
    main()
