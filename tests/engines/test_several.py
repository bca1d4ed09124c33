"""Several servers as one engine: the same samples as from one, and a server that is away costs only its own units."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.engines import several
from limbeck.engines.served import ServedEngine
from limbeck.engines.several import ServedEngines
from limbeck.engines.sglang import SGLangServer
from limbeck.engines.weights_folder import WeightsFolder
from limbeck.errors import EngineError, StalePolicyError
from limbeck.records import Failure, Key, Sampled, SampleRequest, Sampling
from limbeck.wire.http import Pool, PoolSettings
from tests import tiny
from tests.engines.student import Student
from tests.fake_engine import FakeEngine

SAMPLING = Sampling(0.7, max_tokens=4, stop_ids=(1,), seed=3)
PROMPTS = tiny.prompts(3, 5, 4, 6)
TEXT = [int(i) for i in np.random.default_rng(5).integers(4, tiny.VOCABULARY, 20)]
UNITS = [
    [SampleRequest(Key(prompt.id, sample=k), np.array(prompt.token_ids), SAMPLING) for k in range(2)]
    for prompt in PROMPTS
]


class Server(FakeEngine):
    """Knows which prompts it was asked for, and holds answers back until it may give them."""

    def __init__(self) -> None:
        super().__init__(tiny.lm_of("llama").model)
        self.prompts: list[list[int]] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def _answer(self, writer: asyncio.StreamWriter, path: str, body: dict[str, Any]) -> bool:
        if body.get("sampling_params", {}).get("max_new_tokens"):
            self.prompts.append(body["input_ids"])
            await self.may_answer.wait()
        return await super()._answer(writer, path, body)

    @property
    def given(self) -> int:
        return sum(body.get("path") == "/update_weights_from_disk" for body in self.bodies)


@pytest.fixture(autouse=True)
def _no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(several, "REST", 0.02)


@asynccontextmanager
async def fleet(folder: Path, count: int = 2, rows: int = 2, patience: float = 20.0) -> AsyncIterator[Any]:
    """An engine over `count` servers, its servers and the student."""
    settings = PoolSettings(timeout=20.0, patience=0.05, first_wait=0.01, longest_wait=0.05, table="engine")
    weights = WeightsFolder([folder / "weights"])
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(Server()) for _ in range(count)]
        members = [
            ServedEngine(
                SGLangServer("disk"), Pool([s.url], settings), weights, TEXT, SAMPLING, tiny.VOCABULARY, 0.02, 2
            )
            for s in servers
        ]
        yield ServedEngines(members, rows, patience), servers, Student(tiny.fresh("llama"))


async def sample_all(engine: Any, units: Sequence[Sequence[SampleRequest]] = UNITS) -> list[list[int]]:
    answers = [one for unit in await asyncio.gather(*(engine.sample(unit) for unit in units)) for one in unit]
    assert all(isinstance(answer, Sampled) for answer in answers), answers
    return [answer.token_ids.tolist() for answer in answers]


@pytest.fixture(scope="module")
def alone() -> list[list[list[int]]]:
    """What one server samples with the weights of two versions."""
    return asyncio.run(_alone())


async def _alone() -> list[list[list[int]]]:
    student, settings = Student(tiny.fresh("llama")), PoolSettings(table="engine")
    async with FakeEngine(tiny.lm_of("llama").model) as server:
        one = ServedEngine(
            SGLangServer("tensors"), Pool([server.url], settings), WeightsFolder([Path("/nowhere")]), TEXT, SAMPLING,
            tiny.VOCABULARY, 0.02,
        )  # fmt: skip
        await one.load(student.publish())
        first = await sample_all(one)
        await one.load(student.step())
        return [first, await sample_all(one)]


async def test_units_are_shared_and_each_update_is_written_once(alone: Any, tmp_path: Path) -> None:
    async with fleet(tmp_path) as (engine, servers, student):
        await engine.load(student.publish())
        for server in servers:
            server.prompts.clear()  # of the proof
        assert await sample_all(engine) == alone[0]
        shared = [{tuple(ids) for ids in server.prompts} for server in servers]
        assert all(shared)
        assert not shared[0] & shared[1]
        await engine.load(student.step())
        assert await sample_all(engine) == alone[1]
        size = sum(tensor.nbytes for _, tensor in student.publish().tensors())
        assert size <= engine.transfer.bytes < 2 * size
        assert [server.given for server in servers] == [2, 2]
        assert {r.probe.split(": ")[0] for r in engine.results} == {server.url for server in servers}


async def test_the_longest_unit_goes_first_and_a_free_server_takes_the_next(tmp_path: Path) -> None:
    async with fleet(tmp_path) as (engine, servers, student):
        await engine.load(student.publish())
        for server in servers:
            server.prompts.clear()
        servers[0].may_answer.clear()
        tasks = [asyncio.create_task(engine.sample(unit)) for unit in UNITS]
        while len(servers[1].prompts) < 4:
            await asyncio.sleep(0.01)
        first, second = (list(dict.fromkeys(map(len, server.prompts))) for server in servers)
        assert first == [3]  # the first that came, while nothing waited
        assert second == [5, 6]  # then the longest of those that waited
        servers[0].may_answer.set()
        await asyncio.gather(*tasks)


async def test_a_server_that_is_away_costs_only_its_units_and_comes_back_with_the_weights(
    alone: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with fleet(tmp_path) as (engine, (first, second), student):
        await engine.load(student.publish())
        first.fail = 1.0  # answers 500 to everything
        assert await sample_all(engine) == alone[0]
        assert f"{first.url}/generate" in caplog.text
        await engine.load(student.step())
        given = first.given
        assert await sample_all(engine) == alone[1]
        first.fail = 0.0
        first.restart()
        second.may_answer.clear()
        task = asyncio.create_task(sample_all(engine))
        while first.given == given:  # the weights again, then units
            await asyncio.sleep(0.01)
        second.may_answer.set()
        assert await task == alone[1]


async def test_one_that_lost_its_weights_samples_its_units_again(alone: Any, tmp_path: Path) -> None:
    async with fleet(tmp_path) as (engine, (first, _), student):
        await engine.load(student.publish())
        await engine.load(student.step())
        first.restart_after = 1
        assert await sample_all(engine) == alone[1]
        assert first.given == 3


async def test_all_away_for_too_long_stops_the_run(tmp_path: Path) -> None:
    async with fleet(tmp_path, patience=0.3) as (engine, servers, student):
        await engine.load(student.publish())
        for server in servers:
            server.fail = 1.0
        (first, *_) = await asyncio.gather(*(engine.sample(unit) for unit in UNITS), return_exceptions=True)
        assert isinstance(first, EngineError) or isinstance(first[0], Failure)
        with pytest.raises(EngineError, match=r"the weights of .* cannot be checked: .*answered 500"):
            await engine.load(student.step())


async def test_at_the_start_every_server_must_be_there(tmp_path: Path) -> None:
    async with fleet(tmp_path, patience=0.2) as (engine, (_, second), student):
        second.fail = 1.0
        with pytest.raises(EngineError, match=rf"the weights of .*{second.url} cannot be checked"):
            await engine.load(student.publish())


async def test_one_that_starts_late_is_waited_for_and_proven(alone: Any, tmp_path: Path) -> None:
    async with fleet(tmp_path) as (engine, (_, second), student):
        second.fail = 1.0
        loading = asyncio.create_task(engine.load(student.publish()))
        await asyncio.sleep(0.1)
        assert not loading.done()
        second.fail = 0.0
        await loading
        assert len(engine.results) == 6
        assert await sample_all(engine) == alone[0]


async def test_a_server_of_other_weights_stops_the_run_when_it_comes_back(tmp_path: Path) -> None:
    async with fleet(tmp_path) as (engine, (first, second), student):
        await engine.load(student.publish())
        first.fail, first.spoils_weights = 1.0, 0.5
        await engine.load(student.step())
        second.may_answer.clear()
        task = asyncio.create_task(sample_all(engine))
        while not second.prompts:
            await asyncio.sleep(0.01)
        first.fail = 0.0
        with pytest.raises(EngineError, match=rf"{first.url} took the weights of update 1 but does not hold them"):
            await task
        second.may_answer.set()


async def test_nobody_samples_for_a_caller_that_waits_no_more(tmp_path: Path) -> None:
    async with fleet(tmp_path) as (engine, servers, student):
        await engine.load(student.publish())
        for server in servers:
            server.may_answer.clear()
        tasks = [asyncio.create_task(engine.sample(unit)) for unit in UNITS]
        await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.1)
        assert [member.rows for member in engine.members] == [0, 0]
        for server in servers:
            server.may_answer.set()
        assert await sample_all(engine)


async def test_a_server_that_is_away_does_not_touch_a_policy_that_has_ended(tmp_path: Path) -> None:
    """Between the steps nobody asks for it: the learner has moved its weights by then."""
    async with fleet(tmp_path) as (engine, (first, _), student):
        await engine.load(student.publish())
        first.fail = 1.0
        await sample_all(engine)
        student.step()
        first.fail = 0.0
        await asyncio.sleep(0.1)
        assert not engine._returning
        with pytest.raises(StalePolicyError):
            engine.policy.save(tmp_path / "x")
