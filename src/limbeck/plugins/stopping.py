"""How a hook stops a trainer, decided once.

A trainer's rollout loop may catch `Exception` around each group of samples, log it and go on without the group: miles
does, and slime's fully asynchronous loop. A refused contract would be logged for ever, and groups with a sample that
cannot be scored would be left out, which biases the rest. So whatever goes wrong in a hook leaves it as
`TrainingStopped`, which is no `Exception`. asyncio, executors and Ray hand it on like any other: the trainer's step
raises it. `SystemExit` would not do: it ends the thread of the loop and leaves its caller waiting.

A loop in a thread of its own that nobody waits for (slime's fully asynchronous one, miles's with several adapters)
dies of it, and its trainer would wait for samples for ever. Then the process is ended: by an interrupt, and where that
changes nothing, as in a Ray worker, at once.

The first stop is the message. Samples that fail after it, in tasks that their trainer no longer awaits, are not logged.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from limbeck.errors import LimbeckError, place_of

GRACE = 5.0  # seconds in which the main thread must have been interrupted


class TrainingStopped(BaseException):
    """Training must not go on. The message names what was found, what was expected and the remedy."""


@contextmanager
def stopping(what: str) -> Iterator[None]:
    """Turns whatever `Exception` leaves the block into `TrainingStopped`; `what` names the work, for bugs."""
    _listen()
    try:
        yield
    except LimbeckError as error:
        raise TrainingStopped(str(error)) from None
    except Exception as error:
        raise TrainingStopped(f"{what} failed: {type(error).__name__}: {error} ({place_of(error)})") from error


class _EndWithLostThreads:
    """In the place of `threading.excepthook`: says what it always said, then ends the process for a lost stop."""

    def __init__(self) -> None:
        self.before = threading.excepthook

    def __call__(self, lost: threading.ExceptHookArgs) -> None:
        self.before(lost)
        if isinstance(lost.exc_value, TrainingStopped):
            threading.Thread(target=_end_process, args=(str(lost.exc_value),), daemon=True).start()


class _NotTwice(logging.Filter):
    """Of asyncio's: "Task exception was never retrieved", with the stop of a task that nobody awaits."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], TrainingStopped))


def _listen() -> None:
    if not isinstance(threading.excepthook, _EndWithLostThreads):
        threading.excepthook = _EndWithLostThreads()
    logger = logging.getLogger("asyncio")
    if not any(isinstance(one, _NotTwice) for one in logger.filters):
        logger.addFilter(_NotTwice())


def _end_process(message: str) -> None:
    before = _main_is_at()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(GRACE)
    if _main_is_at() == before:
        print(f"limbeck: {message}", file=sys.stderr, flush=True)
        os._exit(1)


def _main_is_at() -> tuple[int, int]:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return (id(frame), frame.f_lasti) if frame else (0, 0)
