"""What a training step costs, kept in the folder of its run, so that runs can be compared at the same cost."""

import json
from pathlib import Path
from typing import NamedTuple

from scoreflow.runs import report


class Cost(NamedTuple):
    """What one step costs.

    Attributes:
      parameters: of the model.
      operations: of a step on a whole batch, over all devices, in XLA's count; None where that is not known.
      memory: bytes on each device while a step runs, its state included; None where that is not known.
    """

    parameters: int | None = None
    operations: float | None = None
    memory: int | None = None


UNKNOWN = Cost()
"""Of a run that keeps no cost."""


def path(folder: Path) -> Path:
    """Where the run in a folder keeps its cost."""
    return folder / "cost.json"


def write(folder: Path, cost: Cost) -> None:
    """Writes `cost.json`, from one process."""
    report.write_json(path(folder), cost._asdict())


def read(folder: Path) -> Cost:
    """The cost that a run keeps; `UNKNOWN` where it keeps none.

    Raises:
      ValueError: where the file cannot be read.
    """
    if not path(folder).is_file():
        return UNKNOWN
    content = json.loads(path(folder).read_text())
    if not isinstance(content, dict):
        raise ValueError("it holds no names")
    numbers = {name: content.get(name) for name in Cost._fields}
    if not all(value is None or isinstance(value, int | float) for value in numbers.values()):
        raise ValueError("it holds something other than numbers")
    return Cost(**numbers)
