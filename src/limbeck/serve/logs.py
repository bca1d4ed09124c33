"""Lines that a client can cause as often as it likes are written now and then, with their number."""

from __future__ import annotations

import logging
import time

PAUSE = 30.0  # seconds
LOGGERS = ("uvicorn.error", "asyncio")
OF_CLIENTS = (
    "Invalid HTTP request received.",
    "Unsupported upgrade request.",
    "No supported WebSocket library detected.",
    "socket.send() raised exception.",
)


class Seldom(logging.Filter):
    """Lets one line of each kind through in `PAUSE` seconds, and all that are none of the clients'."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}
        self._more: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind = next((kind for kind in OF_CLIENTS if str(record.msg).startswith(kind)), None)
        if kind is None:
            return True
        now = time.monotonic()
        if kind in self._last and now - self._last[kind] < PAUSE:
            self._more[kind] = self._more.get(kind, 0) + 1
            return False
        self._last[kind] = now
        if more := self._more.pop(kind, 0):
            record.msg = f"{record.msg} ({more} more since the last such line)"
        return True


def bound_lines_of_clients() -> None:
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(one, Seldom) for one in logger.filters):
            logger.addFilter(Seldom())
