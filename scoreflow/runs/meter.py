"""Averages of what is measured at every step, from one line of the log to the next, in memory that does not grow."""

import time
from collections import deque
from collections.abc import Iterable

import numpy as np

from scoreflow.runs.log import Log

_RECENT = 1000  # dispatches that a line of the log looks back on where it is the only one

_Sums = dict[str, np.ndarray]  # by name, the sum of the finite values and their number


class Meter:
    """Averages of the terms of the loss and the speed, from one line of the log to the next.

    Args:
      log: gets the lines.
      start: the step at which the run begins or goes on.
      batch_size: examples per step.
      lines: whether there are lines before the last, which otherwise looks back on the last dispatches alone.
      skip: whether steps may be skipped, which are then counted.
    """

    def __init__(self, log: Log, start: int, batch_size: int, *, lines: bool = True, skip: bool = False):
        self.log, self.batch_size, self.lines, self.skip = log, batch_size, lines, skip
        self.latest = Latest()
        self.recent: deque[_Sums] = deque(maxlen=_RECENT)
        self.since = (time.monotonic(), start)
        self.compiled = False
        self.pace: float | None = None  # the shortest time of a step in seconds, once the first dispatch has compiled

    def add(self, metrics: dict[str, np.ndarray], seconds: float) -> None:
        """Takes the metrics of a dispatch, [K] each, and the time that it took."""
        sums = {name: _sum(values) for name, values in metrics.items()}
        if self.lines and self.recent:
            sums = _together((self.recent.pop(), sums))
        self.recent.append(sums)
        self.latest.add(metrics["loss"])
        if self.compiled:
            self.pace = min(seconds / len(metrics["loss"]), self.pace or float("inf"))
        self.compiled = True

    def validated(self, step: int, loss: float) -> None:
        """Writes the loss on test data."""
        self.latest.validation = loss
        self.log.scalars(step, validation_loss=loss)

    def write(self, step: int) -> None:
        """Writes a line and begins anew."""
        sums = _together(self.recent)
        means = {name: float(total / count) if count else float("nan") for name, (total, count) in sums.items()}
        if self.skip:
            means["skipped"] = int(sums["skipped"][0])
        now, (then, since) = time.monotonic(), self.since
        self.log.scalars(step, **means, examples_per_second=(step - since) * self.batch_size / (now - then))
        self.recent.clear()
        self.since = (now, step)


class Latest:
    """The loss that is shown while a run trains: the mean of the first fifty dispatches, and then an average in which
    the newest one counts a fiftieth.

    Attributes:
      loss: the average; None before the first dispatch. Values that are not finite do not count.
      validation: what was measured last, or None.
    """

    def __init__(self):
        self.loss: float | None = None
        self.validation: float | None = None
        self._count = 0

    def add(self, losses: np.ndarray) -> None:
        """Takes the losses of a dispatch, [K]."""
        finite = losses[np.isfinite(losses)]
        if finite.size:
            mean, before = float(finite.mean(dtype=np.float64)), self.loss or 0.0
            self._count = min(self._count + 1, 50)
            self.loss = before + (mean - before) / self._count

    def words(self) -> str:
        """Both, as far as they are known."""
        values = {"loss": self.loss, "validation": self.validation}
        return "   ".join(f"{name} {value:.4g}" for name, value in values.items() if value is not None)


def _sum(values: np.ndarray) -> np.ndarray:
    """The sum of the values that are finite, as those of skipped steps are not, and their number."""
    finite = values[np.isfinite(values)]
    return np.array([finite.sum(dtype=np.float64), finite.size])


def _together(rows: Iterable[_Sums]) -> _Sums:
    first, *others = rows
    return {name: sum((row[name] for row in others), sums) for name, sums in first.items()}
