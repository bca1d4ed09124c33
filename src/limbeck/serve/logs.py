"""What clients cause, in a log that they cannot fill.

Each kind of refusal is written once, with its reason: training frameworks often show their users the status alone.
Other lines that a client can cause as often as it likes are written now and then, with their number.
"""

from __future__ import annotations

import logging
import re
import time

MOST = 100  # kinds of refusals that are written
VALUES = re.compile(r"'[^']*'|\"[^\"]*\"|\d[\d.,]*(e[+-]?\d+)?")  # what of a message is no part of its kind
PAUSE = 30.0  # seconds
LOGGERS = ("uvicorn.error", "asyncio")
OF_CLIENTS = (
    "Invalid HTTP request received.",
    "Unsupported upgrade request.",
    "No supported WebSocket library detected.",
    "socket.send() raised exception.",
)


_log = logging.getLogger("limbeck.serve")


class Refusals:
    """Writes one line for each kind of refusal: those that differ in numbers and quoted names alone are one kind."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, int, str]] = set()

    def write(self, what: str, status: int, message: str, client: str | None = None) -> None:
        """`what` was asked, such as "POST /generate"; `message` is safe to print."""
        kind = what, status, VALUES.sub("#", message)
        if kind in self._seen or len(self._seen) > MOST:
            return
        self._seen.add(kind)
        if len(self._seen) > MOST:
            _log.warning("more than %d kinds of refusals: no further ones are written", MOST)
            return
        _log.warning(
            "refused %s of %s with %d: %s (written once; others of this kind are not)",
            what, client or "a client", status, message,
        )  # fmt: skip


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
