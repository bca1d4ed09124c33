"""The first SIGINT, SIGTERM or SIGHUP ends a run in order, the second ends it at once.

    with StopSignals() as stop:
        ...                       # here the signal raises `Interrupted` wherever the program is
        with stop.hold():
            ...                   # what is done here is finished first

Sampling, scoring and everything else that can be made again is abandoned; an update and what belongs to it is held.

An exception that a handler raises can be lost: an import turns it into an error of its own, a destructor or a user's
bare `except` drops it. So `check` raises again until `caught` has had it, and an error that follows it counts as it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal asked the run to stop. `step` updates are in the newest checkpoint of `folder`; 0: nothing to keep."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number, self.step = number, 0
        self.folder: Path | None = None

    @property
    def exit_code(self) -> int:
        """129 for SIGHUP, 130 for SIGINT, 143 for SIGTERM, as shells have it."""
        return 128 + self.number


async def in_thread(work: Callable[[], None]) -> None:
    """`work` in a thread, while other tasks go on. Not left before it has come to its end, whoever cancels it."""
    done, cancelled = asyncio.ensure_future(asyncio.to_thread(work)), False
    while not done.done():
        try:
            await asyncio.wait([done])
        except asyncio.CancelledError:
            cancelled = True
    done.result()
    if cancelled:
        raise asyncio.CancelledError


async def cancel_others() -> None:
    """End every other task of this loop, before what they use is closed."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class StopSignals:
    """Handles the signals while it is open, in the main thread; elsewhere `request` has to be called.

    A terminal that goes away is a SIGHUP. Under `nohup` it is ignored, and stays so.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._held = 0
        self._raised = self._caught = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            handled = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._handle) for number in handled}
            outer = getattr(self._before[signal.SIGINT], "__self__", None)
            if isinstance(outer, StopSignals):
                outer.check()  # an import may have lost it
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if isinstance(error, Exception) and (stopped := self.caught(error)) is not None:
            raise stopped from error

    def interrupts(self, loop: asyncio.AbstractEventLoop) -> None:
        """What another thread asks for with `request` also ends what this loop waits for."""
        self._loop = loop

    @contextmanager
    def hold(self) -> Iterator[None]:
        """A signal that comes meanwhile is answered at the end."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        self.check()

    def check(self) -> None:
        """Raises `Interrupted` where a stop was asked for, nothing is held, and nobody has `caught` it."""
        if self.number is not None and not self._held and not self._caught:
            self._raised = True
            raise Interrupted(self.number)

    def caught(self, error: BaseException) -> Interrupted | None:
        """The stop behind an error, if it is one. From then on `check` is silent: what was made is being saved."""
        if isinstance(error, Interrupted):
            self._caught = True
            return error
        if self.number is None or not self._raised or self._caught:
            return None
        self._caught = True
        return Interrupted(self.number)

    def request(self, number: int = signal.SIGINT) -> None:
        """Ask for a stop from another thread: it comes at the next `check`."""
        self.number = number
        if self._loop is not None:
            with suppress(RuntimeError):  # it is closed: all is done
                self._loop.call_soon_threadsafe(self.check)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.number = number
        self.check()


def outside_loops(work: Callable[[StopSignals], T]) -> T:
    """`work` where no event loop runs: here, or, inside one, in a thread of its own that is waited for."""
    if not _in_a_loop():
        with StopSignals() as stop:
            return work(stop)
    stop = StopSignals()
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="limbeck")
    future = pool.submit(copy_context().run, work, stop)  # a notebook's context says which cell shows what is printed
    while True:
        try:
            return future.result()
        except KeyboardInterrupt:
            if future.done() or stop.number is not None:
                raise  # the second one waits for nothing; the thread ends at its next phase
            stop.request()
        finally:
            pool.shutdown(wait=False)


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
