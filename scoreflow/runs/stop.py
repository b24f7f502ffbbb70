"""Ctrl-C, or the SIGTERM by which a scheduler announces the end: a training then saves the step that it is at.

The first signal is noted, and obeyed at the end of the step; the second ends the program as it would without this.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from scoreflow.runs import parallel

_WORDS = b"\nstopping after this step, which is saved; a second signal stops at once\n"
_STDERR = 2
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """Whether a signal has come since `begin`."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def begin(self) -> None:
        """Listens from now on.

        Not in a job of several processes, which would stop at different steps and wait for each other, nor in a thread,
        where Python takes no signals.
        """
        if parallel.processes()[1] > 1 or threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._note)

    def end(self) -> None:
        """Leaves signals to whoever had them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def obey(self) -> None:
        """Interrupts, if it was asked for; everything that should be kept is kept.

        Raises:
          KeyboardInterrupt: if a signal has come.
        """
        if self.asked:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: Any) -> None:
        self.asked = True
        self.end()
        os.write(_STDERR, _WORDS)  # `print` may be what was interrupted, and cannot begin again then


@contextlib.contextmanager
def listening() -> Iterator[Stopping]:
    """Within it, signals may be listened to; after it they are as before."""
    stopping = Stopping()
    try:
        yield stopping
    finally:
        stopping.end()
