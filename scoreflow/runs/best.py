"""The best checkpoints of a run by some measures, kept beside the newest in `best/<measure>`, each with its value."""

from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp

from scoreflow.runs import checkpoint, parallel


def folder_of(workdir: Path, measure: str) -> Path:
    """Where the best by a measure is kept."""
    return workdir / "best" / measure


class Best:
    """What was best so far by each measure; lower is better.

    Opening it for a run that resumes at `step` forgets what was best after that step. The one before the best is kept
    too, so that a kill while the best is written leaves one.
    """

    def __init__(self, workdir: Path, measures: Iterable[str], step: int):
        self.workdir, self.values = workdir, {}
        like = {"value": jax.ShapeDtypeStruct((), jnp.float32)}
        for measure in measures:
            folder = folder_of(workdir, measure)
            kept = checkpoint.latest(folder, at_most=step)
            parallel.barrier(f"best {measure}")  # all have looked before anything is moved
            if parallel.is_main():
                checkpoint.quarantine(folder, kept)
            parallel.barrier(f"set aside {measure}")
            if kept is not None:
                self.values[measure] = float(checkpoint.restore(folder, kept, like)["value"])

    def offer(self, measure: str, step: int, value: float, params) -> bool:
        """Keeps `params` where they are the best so far; whether they are. All processes call it."""
        if measure in self.values and not value < self.values[measure]:
            return False
        content = {"ema_params": params, "value": parallel.replicate(jnp.float32(value))}
        checkpoint.save(folder_of(self.workdir, measure), step, content, keep=2)
        self.values[measure] = float(value)
        return True
