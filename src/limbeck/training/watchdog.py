"""Says what hangs: which role, at which request, and for how long by now.

    with watch("teacher", "scores of step 7"):
        ...

A thread of its own looks, so a call that blocks the event loop is seen too. What takes long is no error: nothing is
stopped. The first message comes after `PATIENCE` seconds, or later where the role was slower before and came to an
end; each of the next when twice as long has gone by.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from limbeck.formatting import duration

logger = logging.getLogger("limbeck")

PATIENCE = 300.0  # seconds; a step of long responses takes minutes
USUAL = 3.0  # times as long as a role ever took is out of the ordinary
GROWTH = 2.0


@dataclass(eq=False)
class _Entry:
    role: str
    what: str
    began: float
    due: float  # when it is worth a message


class Watchdog:
    """Watches what is entered with `watch`. `clock` counts seconds; `look` is what its thread does again and again."""

    def __init__(self, patience: float = PATIENCE, clock: Callable[[], float] = time.monotonic) -> None:
        self.patience, self.clock = patience, clock
        self._entries: set[_Entry] = set()
        self._longest: dict[str, float] = {}  # seconds that each role took for what came to an end
        self._changed = threading.Condition()  # its lock is taken again by the one who has it
        self._thread: threading.Thread | None = None

    @contextmanager
    def watch(self, role: str, what: str) -> Iterator[None]:
        """`what` is under way at `role` meanwhile."""
        now = self.clock()
        entry = _Entry(role, what, now, now + max(self.patience, USUAL * self._longest.get(role, 0.0)))
        with self._changed:
            self._entries.add(entry)
            self._start()
            self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._entries.discard(entry)
                self._longest[role] = max(self._longest.get(role, 0.0), self.clock() - entry.began)

    def look(self) -> float | None:
        """Report what is due. Seconds until the next is; None where nothing is under way."""
        now = self.clock()
        with self._changed:
            late = [entry for entry in self._entries if entry.due <= now]
            for entry in late:
                entry.due = entry.began + GROWTH * (now - entry.began)
            next_due = min((entry.due for entry in self._entries), default=None)
        for entry in sorted(late, key=lambda entry: entry.began):
            logger.warning(
                "%s: %s has taken %s so far and is not done. If it stays so, look whether that process or server "
                "still runs, and at its log.",
                entry.role, entry.what, duration(now - entry.began),
            )  # fmt: skip
        return None if next_due is None else next_due - now

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="limbeck-watchdog", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        with self._changed:  # an entry that is made between looking and waiting would not wake it
            while True:
                self._changed.wait(self.look())


watch = Watchdog().watch
