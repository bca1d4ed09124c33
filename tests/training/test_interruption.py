"""Real signals: the first ends in order, the second at once; what is held is finished."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

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


def test_it_raises_once_so_that_what_was_made_can_be_saved() -> None:
    with StopSignals() as stop:
        with pytest.raises(Interrupted):
            kick()
        with stop.hold():
            pass
        stop.check()


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
