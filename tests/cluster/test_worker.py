from __future__ import annotations

import asyncio
import os
import signal
from functools import partial
from pathlib import Path

import pytest
import ray

from limbeck.cluster.worker import Link, Worker
from limbeck.errors import ContractError, LostWorkerError, ModelError
from tests.cluster.parts import Counter, broken

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]


@pytest.fixture
def worker() -> Worker:
    return Worker("sampler 1", partial(Counter, 5), threads=3)


async def test_calls_threads_logs_and_errors(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    await worker.start()
    assert await worker.call("add", 2) == 7
    assert await worker.call("threads") == 3
    assert await worker.call("folder") == os.getcwd(), "relative paths are those of the driver"
    await worker.call("warn", "the disk is slow")
    assert "sampler 1: the disk is slow" in caplog.text
    with pytest.raises(ContractError, match="no such teacher") as refused:
        await worker.call("refuse")
    assert type(refused.value) is ContractError
    assert [result.probe for result in refused.value.results] == ["a"]
    with pytest.raises(OSError) as full:
        await worker.call("no_space")
    assert (full.value.errno, full.value.filename) == (28, "/some/file")
    with pytest.raises(KeyError) as bug:
        await worker.call("fail")
    assert type(bug.value) is KeyError
    assert 'raise KeyError("a bug")' in bug.value.__notes__[0]
    assert await worker.call("add", 1) == 8, "errors leave the process as it is"
    worker.kill()


async def test_what_a_builder_raises_arrives_as_it_is() -> None:
    worker = Worker("learner 1", broken, threads=1)
    with pytest.raises(ModelError, match="no model folder at 'x'"):
        await worker.start()
    worker.kill()


async def test_a_killed_process_is_replaced_and_gets_its_state_again(
    worker: Worker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await worker.start()
    worker.state = [("set", 40)]
    await worker.call("set", 40)
    assert await worker.call("die_once", str(tmp_path / "mark")) == 40
    assert "sampler 1 was lost in die_once" in caplog.text
    os.kill(await worker.call("pid"), signal.SIGKILL)  # between two calls
    assert await worker.call("add", 2) == 42
    worker.kill()


async def test_a_process_that_was_replaced_before_anyone_asked_is_reported(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    await worker.start()
    life, pid = (await worker.link.actor.who.remote())[:2]
    os.kill(pid, signal.SIGKILL)
    while True:
        try:
            if (await worker.link.actor.who.remote())[0] != life:
                break
        except ray.exceptions.RayActorError:
            await asyncio.sleep(0.05)
    assert await asyncio.gather(worker.call("add", 1), worker.call("add", 1)) in ([6, 7], [7, 6])
    assert caplog.text.count("sampler 1 was lost before add") == 1
    worker.kill()


async def test_calls_that_are_under_way_at_once_are_all_asked_again(worker: Worker, tmp_path: Path) -> None:
    await worker.start()
    mark, go = tmp_path / "mark", tmp_path / "go"
    calls = [asyncio.create_task(worker.call("wait_for", str(go))) for _ in range(3)]
    while (doing := (await worker.link.actor.who.remote())[3]) is None:
        await asyncio.sleep(0.01)
    assert doing[0] == "wait_for", "it says which call it is in, while it is in it"
    mark.touch()
    os.kill((await worker.link.actor.who.remote())[1], signal.SIGKILL)
    go.touch()
    assert await asyncio.gather(*calls) == [5, 5, 5]
    worker.kill()


async def test_one_that_dies_every_time_is_given_up(worker: Worker) -> None:
    with pytest.raises(LostWorkerError, match=r"sampler 1 was lost in 'die' 3 times in a row.*memory"):
        await worker.call("die")
    worker.kill()


async def test_without_restarts_a_death_is_raised_at_once() -> None:
    worker = Worker("learner 1", Counter, threads=1, restarts=False)
    await worker.start()
    with pytest.raises(LostWorkerError, match="learner 1 was lost in 'die'"):
        await worker.call("die")


class Asker:
    """A part that asks another process by its link."""

    def __init__(self, link: Link) -> None:
        self.link = link

    def ask(self, mark: str) -> int:
        return int(self.link.get("die_once", mark))

    def refused(self) -> None:
        self.link.get("refuse")


async def test_a_link_asks_from_another_worker(worker: Worker, tmp_path: Path) -> None:
    asker = Worker("learner 1", partial(Asker, worker.link), threads=1)
    assert await asker.call("ask", str(tmp_path / "mark")) == 5
    with pytest.raises(ContractError, match="no such teacher"):
        await asker.call("refused")
    asker.kill()
    worker.kill()


def test_a_link_blocks_in_the_driver_too(worker: Worker) -> None:
    assert worker.link.get("add", 1) == 6
    assert ray.is_initialized()
    worker.kill()
