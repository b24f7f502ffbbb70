"""The best checkpoints of a run by some measures, kept in `best/<measure>`, each with its value."""

from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp

from scoreflow.runs import checkpoint, parallel
from scoreflow.types import Params


def folder_of(workdir: Path, measure: str) -> Path:
    """The folder of the best checkpoint by a measure."""
    return workdir / "best" / measure


class Best:
    """The best checkpoint so far by each measure; lower is better.

    Opening it for a run that resumes at `step` drops checkpoints after that step. The previous best is kept too, so
    that a kill while the best is written leaves one.
    """

    def __init__(self, workdir: Path, measures: Iterable[str], step: int):
        self.workdir = workdir
        self.values: dict[str, float] = {}
        like = {"value": jax.ShapeDtypeStruct((), jnp.float32)}
        for measure in measures:
            folder = folder_of(workdir, measure)
            kept = checkpoint.latest(folder, at_most=step)
            parallel.barrier(f"best {measure}")  # every process has looked before anything is moved
            if parallel.is_main():
                checkpoint.quarantine(folder, kept)
            parallel.barrier(f"quarantined {measure}")
            if kept is not None:
                self.values[measure] = float(checkpoint.restore(folder, kept, like)["value"])

    def offer(self, measure: str, step: int, value: float, params: Params) -> bool:
        """Keeps `params` if they are the best so far, and returns whether they are. All processes call it."""
        if measure in self.values and not value < self.values[measure]:
            return False
        content = {"ema_params": params, "value": parallel.replicate(jnp.float32(value))}
        checkpoint.save(folder_of(self.workdir, measure), step, content, keep=2)
        self.values[measure] = float(value)
        return True
