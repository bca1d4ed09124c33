"""A stop gets out of the loops that trainers run hooks in: small ones here, their own in `tests/peers`."""

from __future__ import annotations

import asyncio
import gc
import logging
import pickle
import subprocess
import sys
import threading
from typing import Any

import pytest

from limbeck.errors import ContractError
from limbeck.plugins.stopping import TrainingStopped, stopping


async def hook(number: int, bad: int = 2) -> int:
    with stopping("the hook"):
        await asyncio.sleep(0.001 * number)
        if number >= bad:
            raise ContractError(f"sample {number} cannot be scored")
        return number


async def forgiving_loop(tasks: set[asyncio.Task[Any]]) -> list[int]:
    """As miles's: a group whose task raised is logged, and left out."""
    data: list[int] = []
    while tasks:
        done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            try:
                data.append(task.result())
            except Exception:
                continue
    return data


async def rollout() -> list[int]:
    return await forgiving_loop({asyncio.create_task(hook(number)) for number in range(4)})


def test_a_loop_that_forgives_exceptions_does_not_go_on_without_a_sample() -> None:
    """On an event loop in a thread of its own, from which the trainer takes the result of a rollout."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        with pytest.raises(TrainingStopped, match=r"^sample [23] cannot be scored$"):
            asyncio.run_coroutine_threadsafe(rollout(), loop).result(10)
        assert thread.is_alive()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def test_what_fails_after_the_stop_is_not_logged_as_well(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TrainingStopped):
        await rollout()
    await asyncio.sleep(0.05)  # the third sample fails when nobody awaits it any more
    gc.collect()
    assert "never retrieved" not in caplog.text


def test_a_fault_of_another_kind_names_its_place() -> None:
    with (
        pytest.raises(
            TrainingStopped, match=r"the hook failed: KeyError: 'x' \(.*test_stopping\.py, line \d+, in .*\)"
        ),
        stopping("the hook"),
    ):
        {}["x"]
    with pytest.raises(asyncio.CancelledError), stopping("the hook"):
        raise asyncio.CancelledError


def test_a_stop_travels_between_processes() -> None:
    """Ray pickles what an actor raised."""
    copy = pickle.loads(pickle.dumps(TrainingStopped("why")))
    assert (type(copy), str(copy)) == (TrainingStopped, "why")
    assert not isinstance(copy, Exception)


LOST = """
import asyncio, signal, sys, threading
from limbeck.plugins import stopping
from tests.plugins.test_stopping import hook
deaf = len(sys.argv) > 1
stopping.GRACE = 0.2 if deaf else 60  # a busy machine takes its time until the main thread is interrupted
def loop():
    asyncio.run(hook(2))
# a test that runs in the background of a shell has begun with interrupts ignored
signal.signal(signal.SIGINT, signal.SIG_IGN if deaf else signal.default_int_handler)
threading.Thread(target=loop, daemon=True).start()
threading.Event().wait()
"""


@pytest.mark.parametrize("deaf", [False, True])
def test_a_process_whose_loop_died_of_the_stop_does_not_wait_for_ever(deaf: bool) -> None:
    """By an interrupt; and where the main thread does not get one, as in a Ray worker, at once."""
    words = [sys.executable, "-c", LOST, *(["deaf"] if deaf else [])]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert "TrainingStopped: sample 2 cannot be scored" in ended.stderr
    assert ("KeyboardInterrupt" in ended.stderr) is not deaf


def test_what_it_listens_to_is_set_once() -> None:
    with pytest.raises(TrainingStopped), stopping("x"):
        raise ContractError("first")
    before, filters = threading.excepthook, len(logging.getLogger("asyncio").filters)
    with pytest.raises(TrainingStopped), stopping("x"):
        raise ContractError("second")
    assert threading.excepthook is before
    assert len(logging.getLogger("asyncio").filters) == filters
