"""A run on a disk that fills up, and in a folder that becomes read-only: what it says, and what is left.

    python -m benchmarks.disks        as root, on Linux: it mounts a small loop device and removes it again

Each run must end in one line and exit code 1, leave whole checkpoints, and go on to the same end once the disk is well.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.campaigns import CONFIG, complete, start, unreadable

MEGABYTES = 24


@contextlib.contextmanager
def disk(home: Path) -> Iterator[Path]:
    """A small file system of its own."""
    image, place = home / "disk.img", home / "disk"
    place.mkdir()
    image.write_bytes(b"\0" * (MEGABYTES << 20))
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def losses(folder: Path) -> list[tuple[int, float]]:
    """(step, loss) of every line of the log."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def report(name: str, code: int, err: str, folder: Path) -> None:
    """Prints how a run ended."""
    lines = [line for line in err.splitlines() if line.startswith(("error:", "Traceback"))]
    whole = len(list((folder / "checkpoints").glob("*.sha256.json")))
    print(f"{name}: exit code {code}, {len(lines)} line: {lines[-1][:200] if lines else ''}")
    print(f"  {whole} checkpoints are left, {len(unreadable(folder))} files are not whole", flush=True)


def go_on(home: Path, *words: str) -> None:
    """Runs the same command again, and prints whether it ends as a calm run does."""
    code, _, err = complete(home, *words)
    run = Path(next(word for word in words if word.startswith("--workdir=")).partition("=")[2])
    same = losses(run) == losses(home / "calm")
    print(f"  once that is mended: exit code {code}, the losses are those of a calm run: {same}", flush=True)
    if code:
        print(err, flush=True)


def main() -> None:
    """Runs both."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        (home / "tiny.py").write_text(CONFIG.replace('"width": 16', '"width": 150'))
        words = ("--config=tiny.py", "--config.training.keep=100", "--config.training.pictures=False")
        code, _, err = complete(home, *words, "--workdir=calm")
        assert code == 0, err
        with disk(home) as place:
            run = place / "run"
            code, _, err = complete(home, *words, f"--workdir={run}")
            report("a full disk", code, err, run)
            for step in range(1, 9):  # as a person makes room
                shutil.rmtree(run / "checkpoints" / str(step))
            go_on(home, *words, f"--workdir={run}", "--config.training.keep=1")
        (home / "other").mkdir()
        with disk(home / "other") as place:
            run = place / "run"
            process = start(home, *words, f"--workdir={run}", "--config.training.keep=2")
            while len(list(run.glob("checkpoints/*.sha256.json"))) < 2 and process.poll() is None:
                time.sleep(0.05)
            subprocess.run(["chattr", "-R", "+i", run], check=True)  # even root writes nothing into it
            _, err = process.communicate(timeout=300)
            report("a folder that becomes read-only", process.returncode, err, run)
            subprocess.run(["chattr", "-R", "-i", run], check=True)
            go_on(home, *words, f"--workdir={run}", "--config.training.keep=2")


if __name__ == "__main__":
    sys.exit(main())
