"""Real signals: the first ends in order, the second at once; what is held is finished."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from limbeck.training.interruption import Interrupted, StopSignals


def kick(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_raises_where_the_program_is(number: int, code: int) -> None:
    with StopSignals(), pytest.raises(Interrupted) as caught:
        kick(number)
    assert caught.value.exit_code == code
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_what_is_held_is_finished_first() -> None:
    done = []
    with StopSignals() as stop, pytest.raises(Interrupted):  # noqa: PT012
        with stop.hold():
            with stop.hold():
                kick()
                done.append("inner")
            done.append("outer")
        done.append("after")
    assert done == ["inner", "outer"]


def test_it_is_silent_once_it_was_caught_so_that_what_was_made_can_be_saved() -> None:
    with StopSignals() as stop:
        with pytest.raises(Interrupted) as raised:
            kick()
        assert stop.caught(raised.value) is raised.value
        with stop.hold():
            pass
        stop.check()


def test_one_that_somebody_swallows_comes_again() -> None:
    with StopSignals() as stop:
        with contextlib.suppress(BaseException):  # as a bare `except` of a user's grader does
            kick()
        with pytest.raises(Interrupted):
            stop.check()


def test_one_that_an_import_swallows_comes_again_where_the_run_begins() -> None:
    with StopSignals():
        with contextlib.suppress(BaseException):
            kick()
        with pytest.raises(Interrupted), StopSignals():
            pass


def test_an_error_that_it_became_counts_as_it() -> None:
    with pytest.raises(Interrupted), StopSignals():  # noqa: PT012
        try:
            kick()
        except Interrupted:
            raise ImportError("could not import a part") from None


def test_an_error_of_what_is_held_is_itself() -> None:
    with pytest.raises(ValueError, match="its own"), StopSignals() as stop, stop.hold():  # noqa: PT012
        kick()
        raise ValueError("its own")


def test_a_request_ends_what_a_loop_in_another_thread_waits_for() -> None:
    stop, began = StopSignals(), threading.Event()

    async def wait() -> None:
        stop.interrupts(asyncio.get_running_loop())
        began.set()
        await asyncio.sleep(60)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(lambda: asyncio.run(wait()))
        began.wait()
        stop.request()
        with pytest.raises(Interrupted):
            future.result(timeout=10)
    stop.request()  # the loop is closed: nothing happens


def test_the_second_signal_ends_the_process_at_once() -> None:
    code = (
        "import os, signal\nfrom limbeck.training.interruption import StopSignals\n"
        "with StopSignals() as stop, stop.hold():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    print('first', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    print('second', flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "first\n"
    assert done.returncode == -signal.SIGTERM


def test_a_request_from_another_thread_comes_at_the_next_check() -> None:
    stop = StopSignals()
    stop.request()
    with pytest.raises(Interrupted):
        stop.check()
