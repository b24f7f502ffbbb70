"""The log of a run: lines of JSON, and the same for TensorBoard. Only process 0 writes it."""

import json
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from scoreflow.runs import files, parallel, report


class Log:
    """Scalars of a run: one JSON line per call in `metrics.jsonl`, the same to TensorBoard.

    Opening it for a run that resumes at `step` drops what was written beyond that step, so each step appears once. It
    opens itself when there is something to write.
    """

    def __init__(self, workdir: Path, step: int):
        self.workdir, self._step = workdir, step
        self._file: TextIO | None = None
        self._events: _Events | None = None

    def open(self) -> None:
        """Opens the files, in one process, unless they are open."""
        if self._file is not None or not parallel.is_main():
            return
        self.workdir.mkdir(parents=True, exist_ok=True)
        path, step = self.workdir / "metrics.jsonl", self._step
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line)
                except (ValueError, KeyError):
                    continue  # cut short by a kill
        files.write_text(path, "".join(line + "\n" for line in kept))
        self._file = open(path, "a")
        self._events = _Events(self.workdir / "tensorboard", purge_step=step + 1)

    def scalars(self, step: int, **values: float) -> None:
        """Writes named numbers of a step."""
        self.open()
        if self._file is None or self._events is None:
            return
        record = {"step": step, **{name: float(value) for name, value in values.items()}}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        self._events.scalars(step, values)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Writes an image [H, W, 3] uint8 to TensorBoard."""
        self.open()
        if self._events is not None:
            self._events.image(step, name, pixels)

    def close(self) -> None:
        """Closes both."""
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()


class _Events:
    """An event file, written by the thread that has the numbers.

    tensorboardX writes by a thread of its own; where that dies of a full disk, the training waits for it forever. Here
    a file that cannot be written is given up, in one line: `metrics.jsonl` has the numbers, too.
    """

    def __init__(self, folder: Path, purge_step: int):
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        proto: Any = event_pb2
        self._event, self._summary, self._folder = proto.Event, summary, folder
        self._writer: EventsWriter | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(folder / "events"))
        except OSError as error:
            self._give_up(error)
        start = proto.SessionLog(status=proto.SessionLog.START)
        self._write(proto.Event(step=purge_step, session_log=start))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._write(self._event(step=step, summary=self._summary.scalar(name, float(value))))

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        self._write(self._event(step=step, summary=self._summary.image(name, pixels, dataformats="HWC")))

    def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                writer.close()
            except OSError as error:
                self._give_up(error)

    def _write(self, event: Any) -> None:
        if self._writer is None:
            return
        event.wall_time = time.time()
        try:
            self._writer.write_event(event)
            self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._writer = None
        report.warn(f"nothing more is written for TensorBoard in {self._folder}: {error.strerror or error}")


def read_metrics(workdir: Path) -> list[dict]:
    """The records of `metrics.jsonl`."""
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
