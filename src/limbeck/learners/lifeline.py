"""Whether the other ranks live: a connection to the first that nothing is sent over until a rank leaves on purpose.

A process that dies closes its connections at once, and a machine that vanishes answers no keep-alive. Gloo notices the
former by itself; NCCL would wait. So a rank whose lifeline was cut has a few seconds to say so, and is ended then.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
from typing import Any

GRACE = 15.0  # seconds from a cut lifeline to the end of a process that is still stuck
BYE = b"."
KEEP_ALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3}  # a machine is gone after 14 seconds
KEY = "limbeck/lifeline"


class Lifeline:
    """Connections to the other ranks: of the first to all, of the others to the first."""

    def __init__(self, connections: list[socket.socket]) -> None:
        self._connections, self._cut, self._closed = connections, threading.Event(), threading.Event()
        for connection in connections:
            threading.Thread(target=self._watch, args=(connection,), daemon=True).start()

    @classmethod
    def of(cls, rank: int, count: int, store: Any, host: str, seconds: float) -> Lifeline:
        """Connect to the other ranks, which meet at `store`. Raises `OSError`."""
        if rank == 0:
            return cls(_accept(count - 1, store, host, seconds))
        address, port, token = store.get(KEY).decode().split()
        connection = socket.create_connection((address, int(port)), timeout=seconds)
        connection.sendall(token.encode())
        return cls([_kept_alive(connection)])

    def is_cut(self, seconds: float = 2.0) -> bool:
        """Whether another rank is gone, or is within so many seconds."""
        return self._cut.wait(seconds)

    def close(self) -> None:
        """Say goodbye, so that nobody is alarmed."""
        self._closed.set()
        for connection in self._connections:
            try:
                connection.sendall(BYE)
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                continue  # the other left first

    def _watch(self, connection: socket.socket) -> None:
        try:
            left = connection.recv(1) == BYE
        except OSError:
            left = False
        if left or self._closed.is_set():
            return
        self._cut.set()
        if not self._closed.wait(GRACE):
            print("limbeck: another rank of the learner is gone; this one ends with it.", file=sys.stderr, flush=True)
            os._exit(1)


def _accept(count: int, store: Any, host: str, seconds: float) -> list[socket.socket]:
    token = secrets.token_hex(16)
    found: list[socket.socket] = []
    with socket.create_server((host, 0)) as server:
        server.settimeout(seconds)
        store.set(KEY, f"{host} {server.getsockname()[1]} {token}")
        while len(found) < count:
            connection, _ = server.accept()
            connection.settimeout(seconds)
            if connection.recv(len(token), socket.MSG_WAITALL) == token.encode():
                found.append(_kept_alive(connection))
            else:
                connection.close()
    return found


def _kept_alive(connection: socket.socket) -> socket.socket:
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection
