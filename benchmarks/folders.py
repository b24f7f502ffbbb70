"""A folder of a hundred thousand photos: how long it takes to prepare, to start from, and to train from.

    python -m benchmarks.folders                            100,000 photos; four minutes on 2 CPU cores, 5 GB of disk
    python -m benchmarks.folders --images=5000 --limit=256  fewer; memory of the last part in MiB

prepare   decoding by all cores against one process, on a part of the photos, in turns; then all of them.
start     a new process, from what has been imported to the first batch of a training that goes on.
memory    of that process, above what it has after its imports: its own (anonymous), and pages of the file that the
          system may take back; at the first batch, and after two epochs' worth of batches.
steps     seconds of a training step of a small network, so that its batches would be seen: photos in the prepared
          file against the same ones as arrays in memory, in turns.
limit     the same epochs in a control group whose memory is below the size of the data; needs root, on Linux.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

SIDE, STORED = 64, 96  # pixels, in the model and in the files
BATCH = 128
GROUPS = {Path("/sys/fs/cgroup"): "memory.max", Path("/sys/fs/cgroup/memory"): "memory.limit_in_bytes"}

CHILD = """
import json, sys, time
import jax
from scoreflow import data
from scoreflow.data import facts, load
from scoreflow.train import TrainOptions

def memory():
    status = dict(line.split(":", 1) for line in open("/proc/self/status") if line.startswith("Rss"))
    return [int(status[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")]

folder, cache, batches = sys.argv[1], sys.argv[2], int(sys.argv[3])
before, began = memory(), time.monotonic()
dataset = load.load("folder", path=folder, dir=cache, image_size=int(sys.argv[4]))
data.describe(dataset), facts.facts(dataset)
data.batch(dataset.train, 0, 0, int(sys.argv[5]))
seconds, first = time.monotonic() - began, memory()
began = time.monotonic()
for step in range(batches):
    data.batch(dataset.train, 0, step, int(sys.argv[5]))
pace, last = (time.monotonic() - began) / max(batches, 1), memory()
above = lambda now: [a - b for a, b in zip(now, before)]
print(json.dumps({"seconds": seconds, "first": above(first), "last": above(last), "batch": pace}))
"""


def write(folder: Path, first: int, last: int) -> None:
    """Photos of smooth random fields, a hundred classes."""
    for i in range(first, last):
        rng = np.random.default_rng(i)
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        image = small.resize((STORED, STORED), Image.Resampling.BICUBIC)
        noise = rng.normal(0.0, 6.0, (STORED, STORED, 3))
        pixels = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i % 100:02d}" / f"{i:06d}.jpg", quality=90)


def prepare(folder: Path, cache: Path, workers: int) -> float:
    """Seconds of decoding a folder."""
    from scoreflow.data.images import Decoding
    from scoreflow.data.kinds import open_source
    from scoreflow.data.prepared import prepared

    began = time.monotonic()
    prepared(open_source(folder), "photos", cache=cache, rule=Decoding(image_size=SIDE), workers=workers)
    return time.monotonic() - began


def start(folder: Path, cache: Path, batches: int, group: Path | None = None) -> dict:
    """What a new process measures of itself, in a control group if one is given."""
    command = [sys.executable, "-c", CHILD, str(folder), str(cache), str(batches), str(SIDE), str(BATCH)]
    if group is not None:
        command = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"), *command]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def steps(folder: Path, cache: Path, number: int = 50) -> dict[str, list[float]]:
    """Seconds of steps from the prepared file and from memory, in turns."""
    from configs import vp_cifar10
    from scoreflow import configure, data
    from scoreflow.dispatch import batches_of, dispatch_of
    from scoreflow.experiment import INIT
    from scoreflow.step import init_state

    config = vp_cifar10.get_config()
    config.data.update({"name": "folder", "path": str(folder), "dir": str(cache), "image_size": SIDE})
    config.model.update({"name": "mlp", "width": 64, "depth": 1})  # so small that the batches would be seen
    config.training.update({"batch_size": BATCH, "grad_accum": 1, "steps": 10**6})
    mapped = configure.experiment(config, "folders")
    split = mapped.data.train
    memory = mapped._replace(data=mapped.data._replace(train=data.Split(np.array(split.x), split.label)))
    options = configure.train_options(config, mapped)
    state = init_state(mapped.init, options.optimizer, mapped.key(INIT))
    dispatch, seconds = dispatch_of(mapped, options), {"file": [], "memory": []}
    batches = {
        name: data.prefetch(batches_of(experiment, options, 0))
        for name, experiment in (("file", mapped), ("memory", memory))
    }
    for i in range(2 * number + 2):
        name = ("file", "memory")[i % 2]
        began = time.monotonic()
        state, metrics = dispatch(state, next(batches[name])[1])
        np.asarray(metrics["loss"])
        if i >= 2:
            seconds[name].append(time.monotonic() - began)
    return seconds


def show(name: str, values: list[float], unit: str) -> None:
    """A median with the range of all."""
    print(f"{name:32s} {np.median(values):9.3f} {unit}   ({min(values):.3f} to {max(values):.3f})", flush=True)


def main() -> None:
    """Measures all parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--limit", type=int, default=512, help="MiB of memory above that of the imports")
    options = parser.parse_args()
    number, cores = options.images, len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as home:
        folders = {name: Path(home) / name for name in ("all", "part")}
        for folder in folders.values():
            for i in range(100):
                (folder / f"{i:02d}").mkdir(parents=True)
        with ProcessPoolExecutor(cores) as pool:
            share = -(-number // (4 * cores))
            made = [pool.submit(write, folders["all"], i, min(i + share, number)) for i in range(0, number, share)]
            made.append(pool.submit(write, folders["part"], 0, min(50_000, number)))
            for each in made:
                each.result()
        size = number * SIDE * SIDE * 3 / 2**20
        print(f"{number} photos of {STORED} x {STORED}, {size:.0f} MiB as pixels of {SIDE} x {SIDE}; {cores} cores")

        seconds: dict[int, list[float]] = {1: [], cores: []}
        for i in range(6):
            workers = (1, cores)[i % 2]
            seconds[workers].append(prepare(folders["part"], Path(home) / f"cache-{i}", workers))
        for workers, values in seconds.items():
            show(f"prepare, {workers} process(es)", values, "s")
        print(f"ratio {np.median(seconds[1]) / np.median(seconds[cores]):.2f}")
        cache = Path(home) / "cache"
        print(f"prepare all of them: {prepare(folders['all'], cache / 'prepared', 0):.1f} s", flush=True)

        epochs = 2 * number // BATCH
        runs = [start(folders["all"], cache, epochs if i == 2 else 0) for i in range(3)]
        show("start to the first batch", [run["seconds"] for run in runs], "s")
        for name, key in (("the first batch", "first"), ("two epochs", "last")):
            own, pages = runs[-1][key]
            print(f"memory at {name}: {own:.0f} MiB of its own, {pages:.0f} MiB of pages of files")
        for name, values in steps(folders["all"], cache).items():
            show(f"training step from {name}", values, "s")

        limited(folders["all"], cache, epochs, options.limit, runs[-1]["batch"])


def limited(folder: Path, cache: Path, batches: int, limit: int, before: float) -> None:
    """The same epochs with little memory."""
    for root, setting in GROUPS.items():
        if not (root / "cgroup.procs").is_file():
            continue
        group = root / "scoreflow-benchmark"
        try:
            group.mkdir(exist_ok=True)
            (group / setting).write_text(str(limit << 20))
        except OSError:
            continue
        try:
            run = start(folder, cache, batches, group)
            words = f"{run['batch'] * 1e3:.2f} ms for each batch, {before * 1e3:.2f} ms without the limit"
            print(f"two epochs within {limit} MiB in all: {words}")
        finally:
            group.rmdir()
        return
    print("no memory can be limited here")


if __name__ == "__main__":
    main()
