"""Keeps what `--mode=compare` reads of runs, without checkpoints and pictures: docs/results was made so.

python -m experiments.keep --runs=runs/vp_digits,runs/digits_bridge-mixture --out=docs/results/digits
"""

import argparse
import re
import shutil
from pathlib import Path

from scoreflow.comparison import read
from scoreflow.runs import report

_CONFIG = re.compile(r'"/[^"]*/(configs/[^"]+)')  # of a checkout somewhere
_KEPT = ("config.json", "cost.json", "metrics.jsonl", "loss_by_log_snr.json") + tuple(
    f"eval/*/{name}" for name in ("metrics.json", "eval.json", "examples.npz")
)


def keep(folders: list[Path], target: Path) -> None:
    """Copies the results of runs; paths of this machine are left out of them."""
    for folder in folders:
        for path in sorted(each for pattern in _KEPT for each in folder.glob(pattern)):
            copy = target / folder.name / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".npz":
                shutil.copyfile(path, copy)
            else:
                text = path.read_text().replace(f"{folder.resolve().parent}/", "")
                copy.write_text(_CONFIG.sub(r'"\1', text))
    report.say(f"wrote {target}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", required=True, help="folders of runs, or a folder that holds runs")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the results")
    args = parser.parse_args()
    keep(read.folders(args.runs), args.out)


if __name__ == "__main__":
    main()
