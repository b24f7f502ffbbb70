"""The best checkpoints of a run by some measures, kept in `best/<measure>`, each with its value."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scoreflow.runs import checkpoint, parallel, report
from scoreflow.types import Params

_NOTE = "measure.json"  # what the values depend on


def folder_of(workdir: Path, measure: str) -> Path:
    """The folder of the best checkpoint by a measure."""
    return workdir / "best" / measure


def folders(workdir: Path) -> list[Path]:
    """The folders of all measures by which a run has kept checkpoints."""
    return sorted(path for path in (workdir / "best").glob("*") if path.is_dir())


class Best:
    """The best checkpoint so far by each measure; lower is better.

    Opening it for a run that resumes at `step` drops checkpoints after that step, also those by measures that are no
    longer asked for. The previous best is kept too, so that a kill while the best is written leaves one.

    Args:
      workdir: the folder of the run.
      measures: their names.
      step: at which the run begins or goes on.
      depends_on: by name, plain values that a measure depends on. Where they were others, values are not compared: a
        line says that the comparison begins anew.
    """

    def __init__(
        self,
        workdir: Path,
        measures: Iterable[str],
        step: int,
        depends_on: Mapping[str, Mapping[str, Any]] = {},
    ):
        self.workdir = workdir
        self.values: dict[str, float] = {}
        self._depends_on = {name: json.loads(json.dumps(dict(values))) for name, values in depends_on.items()}
        measures, like = set(measures), {"value": jax.ShapeDtypeStruct((), jnp.float32)}
        for measure in sorted(measures | {path.name for path in folders(workdir)}):
            folder = folder_of(workdir, measure)
            kept = checkpoint.latest(folder, at_most=step)
            before = _read(folder / _NOTE)
            parallel.barrier(f"best {measure}")  # every process has looked before anything is moved
            if parallel.is_main():
                checkpoint.quarantine(folder, kept)
            parallel.barrier(f"quarantined {measure}")
            if kept is None or measure not in measures:
                continue
            value, now = float(checkpoint.restore(folder, kept, like)["value"]), self._depends_on.get(measure, {})
            if before is not None and before != now:
                words = ", ".join(
                    f"{name} was {before.get(name)}, is {now.get(name)}"
                    for name in sorted(before.keys() | now.keys())
                    if before.get(name) != now.get(name)
                )
                report.say(f"the best checkpoint by {measure} is chosen anew: {words}")
            elif np.isfinite(value):
                self.values[measure] = value

    def offer(self, measure: str, step: int, value: float, params: Params) -> bool:
        """Keeps `params` if they are the best so far, and returns whether they are. All processes call it.

        A value that is not finite is never the best.
        """
        if not np.isfinite(value) or (measure in self.values and not value < self.values[measure]):
            return False
        folder = folder_of(self.workdir, measure)
        content = {"ema_params": params, "value": parallel.replicate(jnp.float32(value))}
        checkpoint.save(folder, step, content, keep=2)
        # after the checkpoint: a kill in between begins the comparison anew, and never compares what differs
        report.write_json(folder / _NOTE, self._depends_on.get(measure, {}))
        self.values[measure] = float(value)
        return True


def _read(path: Path) -> dict[str, Any] | None:
    """What the values in a folder depend on; None where nothing says so, as in runs of older versions."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
