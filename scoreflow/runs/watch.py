"""A job of several processes ends as a whole: where one of them is gone, the others say so and stop.

Every process keeps a connection to the first. The system closes the connections of a process, however it ends, so that
a death is known at once, while collectives would wait for it. A process that has finished says so first.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from typing import NoReturn

import numpy as np

from scoreflow.runs import parallel

_FINISHED = b"."
_GRACE = 2.0  # seconds in which a process that is about to end by itself may do so
_ADDRESS = 256  # bytes of the first process's address
_connections: list[socket.socket] = []


def begin() -> None:
    """Connects the processes; all of them call it, once the job is joined."""
    index, count = parallel.processes()
    if count == 1:
        return
    listener, address = None, b""
    if index == 0:
        listener = socket.create_server(("", 0), backlog=count)
        address = f"{socket.gethostname()} {listener.getsockname()[1]}".encode()
    shared = np.frombuffer(address.ljust(_ADDRESS), np.uint8)
    host, port = bytes(parallel.from_first(shared)).decode().split()
    if listener is not None:
        threading.Thread(target=_accept, args=(listener, count), daemon=True).start()
        return
    try:
        connection = socket.create_connection((host, int(port)), timeout=30)
    except OSError:  # the first machine cannot be reached by its name: JAX's own signs of life have to do
        return
    connection.settimeout(None)
    connection.sendall(index.to_bytes(4, "big"))
    _watch(connection, 0, count)


def finished() -> None:
    """Says that this process has done all there was to do, so that its end is no death."""
    for connection in _connections:
        with contextlib.suppress(OSError):
            connection.sendall(_FINISHED)


def _accept(listener: socket.socket, count: int) -> None:
    for _ in range(count - 1):
        connection, _ = listener.accept()
        _watch(connection, int.from_bytes(connection.recv(4), "big"), count)


def _watch(connection: socket.socket, index: int, count: int) -> None:
    """Waits, in the background, for what the process `index` says last."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    _connections.append(connection)

    def wait() -> None:
        try:
            said = connection.recv(1)
        except OSError:
            said = b""
        if said != _FINISHED:
            _end(index, count)

    threading.Thread(target=wait, daemon=True).start()


def _end(index: int, count: int) -> NoReturn:
    time.sleep(_GRACE)
    words = f"process {index} of {count} has ended before its time; the same command goes on from the last checkpoint"
    print(f"error: {words}", file=sys.stderr, flush=True)
    os._exit(1)
