"""One process at a time where two would do harm: a lock that ends with its holder.

The lock is the operating system's, on a file that says who holds it, so it is free again as soon as the holder is gone,
however it ended. Where file locks do not reach other machines, as on some network file systems, the file's time shows
whether a holder there is alive: it is renewed every half minute.
"""

import contextlib
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scoreflow.runs import parallel
from scoreflow.runs.errors import UserError

RENEWED = 30.0  # seconds
EXPIRED = 120.0  # seconds without renewal after which a holder on another machine counts as gone


def _try_lock(descriptor: int) -> bool:
    """Whether the file is now locked by this process; also where the file system has no locks."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _holder(path: Path) -> dict[str, Any]:
    """What the file says of its holder; empty where it says nothing."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _age(path: Path) -> float:
    """Seconds since the file was renewed, by the clock of its file system."""
    probe = path.with_name(f".{path.name}-{os.getpid()}")
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _taken(path: Path, what: str) -> UserError:
    holder = _holder(path)
    known = {"pid", "host", "since"} <= holder.keys()
    who = f"process {holder['pid']} on {holder['host']} since {holder['since']}" if known else "another process"
    return UserError(f"{path.parent} is in use: {what} by {who}; wait for it, stop it, or choose another folder")


def busy(folder: Path, name: str = "lock.json") -> bool:
    """Whether a process that is alive says that it holds the lock of a folder; looks without touching the lock."""
    path = folder / name
    holder = _holder(path)
    if holder.get("host") != socket.gethostname():
        try:
            return bool(holder) and time.time() - path.stat().st_mtime < EXPIRED
        except OSError:
            return False
    try:
        os.kill(int(holder["pid"]), 0)
    except PermissionError:  # it is another user's
        return True
    except (OSError, KeyError, TypeError, ValueError, OverflowError):
        return False
    return True


def _make(folder: Path) -> int:
    """Makes a folder where it is missing; the number of folders that were made, with those above it."""
    missing = list(itertools.takewhile(lambda path: not path.exists(), (folder, *folder.parents)))
    folder.mkdir(parents=True, exist_ok=True)
    return len(missing)


def _acquire(path: Path, what: str) -> int:
    """An open, locked descriptor of the file."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _try_lock(descriptor):
                raise _taken(path, what)
            elsewhere = _holder(path).get("host", socket.gethostname()) != socket.gethostname()
            if elsewhere and _age(path) < EXPIRED:
                raise _taken(path, what)
            same = os.path.exists(path) and os.fstat(descriptor).st_ino == os.stat(path).st_ino
        except BaseException:
            os.close(descriptor)
            raise
        if same:
            return descriptor
        os.close(descriptor)  # its last holder removed the file while this process waited to open it


@contextlib.contextmanager
def held(folder: Path, what: str, name: str = "lock.json") -> Iterator[None]:
    """Holds the lock of a folder, in the first process of a job; a second job is refused while it is held.

    Args:
      folder: made where it is missing, and then removed again if nothing else has been put there.
      what: is done in it, for the message to others, such as "training".
      name: of the file, so that a folder can have several locks.

    Raises:
      UserError: in every process, naming the holder's process, machine and time.
    """
    path, descriptor, refused, made = folder / name, -1, None, 0
    if parallel.is_main():
        try:
            made = _make(folder)
            descriptor = _acquire(path, what)
        except UserError as error:
            refused = error
    if not parallel.agree(refused is None):
        raise refused or UserError(f"{folder} is in use by another process")
    if descriptor < 0:
        yield
        return
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    if not made and isinstance(before := _holder(path).get("made"), int):  # of a holder that was killed
        made = before
    content = {"host": socket.gethostname(), "pid": os.getpid(), "since": since, "what": what, "made": made}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(content).encode(), 0)
    done = threading.Event()

    def renew() -> None:
        while not done.wait(RENEWED):
            with contextlib.suppress(OSError):
                os.utime(path)

    threading.Thread(target=renew, daemon=True).start()
    try:
        yield
    finally:
        done.set()
        with contextlib.suppress(OSError):
            os.unlink(path)  # while it is still locked, so that it is never another's
            for made_by_us in (folder, *folder.parents)[:made]:
                made_by_us.rmdir()  # only where it is empty
        os.close(descriptor)
