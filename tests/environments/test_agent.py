"""An agent's function as an environment: what it returns, and what went wrong, become an episode or a failure."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from limbeck.environments.agent import AgentEnvironment
from limbeck.environments.agent_processes import AgentProcesses
from limbeck.errors import DataError
from limbeck.gateway import SessionReport
from limbeck.records import Episode, Failure
from tests.environments.fake_gateway import KEY, PROMPT, FakeGateway, session
from tests.environments.test_agent_processes import MODULE, until


def grade(prompt, response):
    if response == "unreadable":
        raise DataError("prompt 'p1': cannot be read")
    return None if prompt.answer is None else float(response == prompt.answer)


@asynccontextmanager
async def environment_of(gateway: FakeGateway, grade=grade):
    processes = AgentProcesses(f"{MODULE}:any_of_these")
    environment = AgentEnvironment(gateway, processes, "student", lambda prompt: prompt.metadata["row"], grade)  # type: ignore[arg-type]
    await environment.start()
    try:
        yield environment
    finally:
        await environment.close()


def prompt(**row):
    return type(PROMPT)(PROMPT.id, PROMPT.token_ids, answer=row.pop("answer", "46"), metadata={"row": row})


async def test_what_a_function_returns_is_the_reward_of_all_that_was_sampled() -> None:
    rows = [
        ({"do": "reward", "reward": 0.25}, 0.25, ()),
        ({"do": "reward", "reward": None}, None, ()),  # the task's grader decides
        ({"do": "turn_rewards"}, 1.0, (0.0, 1.0)),
        ({"do": "answers"}, 1.0, ()),  # graded: the row's answer is 46
        ({"do": "answers", "answer": "47"}, 0.0, ()),
    ]
    async with environment_of(FakeGateway(SessionReport(requests=2, turns=2))) as environment:
        for row, reward, turn_rewards in rows:
            episode = await environment.run(prompt(**row), KEY, await session(turns=2))
            assert isinstance(episode, Episode), episode
            assert (episode.reward, episode.turn_rewards) == (reward, turn_rewards)
            assert episode.rollouts[0].token_ids.tolist() == [9, 5, 6, 9, 5, 6]


@pytest.mark.parametrize(
    ("row", "kind", "words"),
    [
        ({"do": "raises"}, "agent_raised", "RuntimeError: no such tool"),
        ({"do": "exits"}, "agent_exited", "exit(3)"),
        ({"do": "not_finite"}, "bad_reward", "nan, expected a finite number"),
        ({"do": "turn_rewards"}, "bad_reward", "2 turn_rewards, expected one for each of the 1 turns"),
        ({"do": "answers", "answer": None}, "bad_reward", "set task.grader"),
    ],
)
async def test_what_goes_wrong_is_a_failure_of_the_rollout(row, kind, words) -> None:
    async with environment_of(FakeGateway()) as environment:
        failure = await environment.run(prompt(**row), KEY, await session(turns=1))
    assert isinstance(failure, Failure)
    assert (failure.id, failure.stage, failure.kind) == ("p1", "run", kind)
    assert words in failure.message


async def test_an_agent_that_asks_nothing_and_one_whose_session_failed_are_failures() -> None:
    report = SessionReport(requests=1, turns=0)
    report.errors["model_not_found"] = 1
    async with environment_of(FakeGateway(report)) as environment:
        failure = await environment.run(prompt(do="reward", reward=1), KEY, await session())
        assert isinstance(failure, Failure)
        assert failure.kind == "no_turns"
        assert "model_not_found" in failure.message
        report.failure = Failure("p1", "sample", "timeout", "the server is gone")
        assert await environment.run(prompt(do="reward", reward=1), KEY, await session()) == report.failure


async def test_cancelled_at_its_time_limit_it_closes_the_session_and_says_what_it_printed_last(tmp_path) -> None:
    gateway = FakeGateway()
    async with environment_of(gateway) as environment:
        row = prompt(do="hangs", touch=str(tmp_path / "printed"))
        call = asyncio.create_task(environment.run(row, KEY, await session()))
        await until((tmp_path / "printed").exists)
        assert gateway.open_now
        call.cancel()
        with pytest.raises(asyncio.CancelledError, match="waiting for the tool"):
            await call
        assert not gateway.open_now
