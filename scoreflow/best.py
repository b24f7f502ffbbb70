"""The best checkpoints of a run by some measures, kept beside the newest: averaged parameters in `best/<measure>`."""

import json
import shutil
from pathlib import Path

from scoreflow import checkpoint, parallel, report


def folder_of(workdir: Path, measure: str) -> Path:
    """Where the best by a measure is kept."""
    return workdir / "best" / measure


class Best:
    """What was best so far by each measure; lower is better.

    Opening it for a run that resumes at `step` forgets what was best after that step. The record of a value is written
    after its checkpoint, so that a kill between the two costs at most that one.
    """

    def __init__(self, workdir: Path, step: int):
        self.workdir, self.path = workdir, workdir / "best" / "best.json"
        found = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.records = {name: record for name, record in found.items() if record["step"] <= step}
        if parallel.is_main() and self.path.parent.exists():
            for folder in self.path.parent.iterdir():
                kept = self.records.get(folder.name, {"step": None})["step"]
                if folder.is_dir() and checkpoint.latest(folder) != kept:
                    shutil.rmtree(folder)
                    self.records.pop(folder.name, None)
        parallel.barrier("best")

    def offer(self, measure: str, step: int, value: float, params) -> bool:
        """Keeps `params` where they are the best so far; whether they are. All processes call it."""
        if measure in self.records and not value < self.records[measure]["value"]:
            return False
        checkpoint.save(folder_of(self.workdir, measure), step, {"ema_params": params}, keep=1)
        self.records[measure] = {"step": step, "value": float(value)}
        report.write_json(self.path, self.records)
        return True
