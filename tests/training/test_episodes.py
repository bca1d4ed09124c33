"""Episodes of several turns: waves, limits, and failures that cost one episode alone."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.config.objective import TaskRewardConfig
from limbeck.errors import DataError, LimbeckError
from limbeck.protocols import Generate
from limbeck.records import Context, Episode, Failure, Key, Prompt, Sampled, SampleRequest
from limbeck.testing import BigramEngine, FakeTask
from limbeck.training import episodes
from limbeck.training.advantage import turn_advantages
from limbeck.training.collect import Collected, collect
from limbeck.training.episodes import EpisodeLimits
from limbeck.training.evaluation import evaluate
from limbeck.training.metrics import describe_episodes
from limbeck.training.recording import record
from limbeck.view.rollouts import Rollouts
from tests.training.test_collect import PROMPTS, TABLE, Script, run_of, soon

FREE = EpisodeLimits(timeout=30.0, max_turns=8, min_completed_fraction=0.5)


def first(prompt: Prompt) -> Context:
    return Context(np.asarray(prompt.token_ids))


async def two_turns(prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
    await generate(first(prompt))
    await generate(Context(np.array([5]), parent=0, role="tool", text="five"))
    return generate.episode(turn_rewards=[1.0, 0.5])


def only_on(prompt_id: str, wrong: Any) -> Any:
    async def play(prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
        if prompt.id == prompt_id:
            return await wrong(prompt, key, generate)  # type: ignore[no-any-return]
        return await two_turns(prompt, key, generate)

    return Script(play)


async def play_of(tmp_path: Path, environment: Any, limits: EpisodeLimits = FREE, **more: Any) -> Collected:
    run = run_of(tmp_path, environment=environment, limits=limits, **more)
    found: Collected = await soon(collect(run, run.task.train, run.sampling(3)))
    assert len(asyncio.all_tasks()) == 1, "nothing goes on behind the caller's back"
    return found


async def raises(prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
    await generate(first(prompt))
    raise KeyError("tool")


async def exits(prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
    raise SystemExit(0)


async def hangs(prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
    await generate(first(prompt))
    await asyncio.sleep(3600)
    return generate.episode()


async def will_not_go(prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        await asyncio.sleep(3600)
    return generate.episode()


async def talks_on(prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
    answer = await generate(first(prompt))
    while isinstance(answer, Sampled):
        answer = await generate(Context(np.array([5]), parent=answer.turn))
    return answer


async def says_nothing(prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
    return generate.episode()


async def gives_up(prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
    return Failure(prompt.id, "run", "no_tool", "the tool is not there")


async def cancels_itself(prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
    raise asyncio.CancelledError


async def wrong_rewards(prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
    await generate(first(prompt))
    return generate.episode(turn_rewards=[1.0, 2.0])


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        (raises, "exception", "environment Script raised KeyError on prompt 'p3': 'tool' .*test_episodes.py, line"),
        (exits, "exception", "raised SystemExit"),
        (hangs, "timeout", "the episode took more than 0.05 seconds beside its turns"),
        (will_not_go, "timeout", "took more than"),
        (talks_on, "max_turns", "the student had 8 turns already"),
        (says_nothing, "no_turns", "has no rollouts"),
        (gives_up, "no_tool", "the tool is not there"),
        (cancels_itself, "cancelled", "cancelled its own task"),
        (wrong_rewards, "exception", "2 turn_rewards for 1 turns"),
    ],
)
async def test_what_goes_wrong_in_an_episode_costs_that_episode_alone(
    tmp_path: Path, wrong: Any, kind: str, message: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(episodes, "GRACE", 0.01)
    limits = replace(FREE, timeout=0.05) if kind == "timeout" else FREE
    run = run_of(tmp_path, environment=only_on("p3", wrong), limits=limits)
    found = await soon(collect(run, run.task.train, run.sampling(3)))
    assert [r.prompt.id for r in found.rollouts] == ["p1", "p2", "p4", "p5"]
    assert found.episodes == [0, 1, 3, 4]
    (failure,) = found.failures
    assert (failure.id, failure.stage, failure.kind) == ("p3", "run", kind)
    numbers = describe_episodes(found.rollouts, found.episodes, found.failures, found.counts)
    assert numbers[f"env/failed/{kind}"] == 1
    assert numbers["env/turns"] == 2
    assert "1 of 5 episodes failed" in caplog.text
    assert re.search(message, failure.message)


async def test_the_step_stops_where_too_few_are_completed(tmp_path: Path) -> None:
    with pytest.raises(LimbeckError, match=r"5 of 5 episodes failed \(no_tool: 5\).*min_completed_fraction = 0.5"):
        await play_of(tmp_path, Script(gives_up))
    with pytest.raises(LimbeckError, match=r"5 of 5 episodes failed.*nothing to train on") as stopped:
        await play_of(tmp_path, Script(gives_up), replace(FREE, min_completed_fraction=0.0))
    assert "min_completed_fraction" not in str(stopped.value)
    with pytest.raises(LimbeckError, match=r"1 of 5 episodes failed.*min_completed_fraction = 0.9"):
        await play_of(tmp_path, only_on("p3", gives_up), replace(FREE, min_completed_fraction=0.9))


async def test_an_episode_that_waits_for_slow_others_is_not_out_of_time(tmp_path: Path) -> None:
    """Time counts in which an episode does not wait for the student, over all of its turns."""

    async def slow(prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
        answer = await generate(first(prompt))
        for _ in range(4):
            assert isinstance(answer, Sampled)
            await asyncio.sleep(0.04)
            answer = await generate(Context(np.array([5]), parent=answer.turn))
        return generate.episode()

    found = await play_of(tmp_path, only_on("p3", slow), replace(FREE, timeout=0.1))
    assert [failure.id for failure in found.failures] == ["p3"], "0.16 seconds of its own; the others waited as long"


class Slow(BigramEngine):
    async def sample(self, unit: Sequence[SampleRequest]) -> list[Sampled | Failure]:
        await asyncio.sleep(0.05)
        return await super().sample(unit)


async def test_a_slow_engine_is_nobodys_time(tmp_path: Path) -> None:
    found = await play_of(tmp_path, Script(two_turns), replace(FREE, timeout=0.04), engine=Slow(TABLE))
    assert not found.failures


async def test_a_group_waits_for_its_own_sessions_alone(tmp_path: Path) -> None:
    """Two units of two and one: the turns of one do not wait for a session of another."""
    gate = asyncio.Event()

    async def play(prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
        if prompt.id == "p5":
            await gate.wait()
        elif prompt.id == "p1":
            asyncio.get_running_loop().call_later(0.05, gate.set)
        return await two_turns(prompt, key, generate)

    engine = BigramEngine(TABLE, max_rows=2)
    await play_of(tmp_path, Script(play), engine=engine)
    units = [[(r.key.prompt_id, r.key.turn) for r in unit] for unit in engine.units]
    assert units == [
        [("p1", 0), ("p2", 0)], [("p3", 0), ("p4", 0)], [("p1", 1), ("p2", 1)], [("p3", 1), ("p4", 1)],
        [("p5", 0)], [("p5", 1)],
    ]  # fmt: skip


@pytest.mark.parametrize("most", [1, 2, 3])
async def test_no_more_episodes_run_at_once_than_the_recipe_says(tmp_path: Path, most: int) -> None:
    running, peak = 0, 0

    async def play(prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
        nonlocal running, peak
        running, peak = running + 1, max(peak, running + 1)
        found = await two_turns(prompt, key, generate)
        running -= 1
        return found

    found = await play_of(tmp_path, Script(play), replace(FREE, concurrency=most))
    assert len(found.rollouts) == 5
    assert peak == most


async def test_several_turns_that_a_session_asks_for_at_once_are_one_wave(tmp_path: Path) -> None:
    async def play(prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
        await asyncio.gather(*(generate(first(prompt)) for _ in range(3)))
        return generate.episode()

    engine = BigramEngine(TABLE)
    found = await play_of(tmp_path, Script(play), engine=engine)
    assert [len(unit) for unit in engine.units] == [3 * found.asked]


async def test_an_engine_that_batches_by_itself_is_given_turns_as_they_come(tmp_path: Path) -> None:
    class Server(BigramEngine):
        batches_turns = True

    done: list[str] = []

    async def play(prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
        if prompt.id == "p1":
            while len(done) < 4:  # would wait forever, were the others to wait for it
                await asyncio.sleep(0.001)
        found = await two_turns(prompt, key, generate)
        done.append(prompt.id)
        return found

    engine = Server(TABLE, max_rows=None)
    found = await play_of(tmp_path, Script(play), engine=engine)
    assert [len(unit) for unit in engine.units] == [4, 4, 1, 1]
    waves = await play_of(tmp_path, Script(two_turns))
    assert [r.token_ids.tolist() for r in found.rollouts] == [r.token_ids.tolist() for r in waves.rollouts]


async def test_a_turn_gets_what_is_left_of_the_context_and_none_is_a_failure(tmp_path: Path) -> None:
    said: list[Sampled | Failure] = []

    async def play(prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
        said.append(await generate(Context(np.array([1] * 10))))
        said.append(await generate(Context(np.array([1] * 12))))
        said.append(await generate(Context(np.array([1] * 5), max_tokens=2)))
        return generate.episode()

    run = run_of(tmp_path, environment=Script(play), limits=replace(FREE, context=12), stop_ids=())
    found = await soon(collect(run, run.task.train[:1], run.sampling(3)))
    short, none, two = said
    assert isinstance(short, Sampled)
    assert isinstance(two, Sampled)
    assert (len(short.token_ids), len(two.token_ids)) == (2, 2)
    assert isinstance(none, Failure)
    assert none.kind == "context_length"
    assert [len(r.token_ids) for r in found.rollouts] == [12, 7]
    assert [r.sampling.max_tokens for r in found.rollouts] == [6, 6]
    assert (short.turn, two.turn) == (0, 1)


async def test_a_failed_episode_earns_nothing_in_an_evaluation(tmp_path: Path) -> None:
    run = run_of(tmp_path, environment=only_on("p3", gives_up), limits=FREE, task=FakeTask(PROMPTS, held_out=5))
    found = await soon(evaluate(run))
    assert found.accuracy == pytest.approx((1.5 * len(found.answers)) / 5)
    assert found.values()["env/failed/no_tool"] == 1


@pytest.mark.parametrize("greedy", [False, True])
async def test_an_evaluation_in_which_all_failed_has_the_reward_0(tmp_path: Path, greedy: bool) -> None:
    limits = replace(FREE, min_completed_fraction=0.0)
    run = run_of(tmp_path, environment=Script(gives_up), limits=limits, task=FakeTask(PROMPTS, held_out=5))
    run.recipe = run.recipe.model_copy(update={"eval": run.recipe.eval.model_copy(update={"greedy": greedy})})
    found = await soon(evaluate(run))
    assert (found.accuracy, found.reverse_kl, found.answers) == (0.0, None, ())
    assert found.values()["env/failed/no_tool"] == 5
    run.limits = FREE
    with pytest.raises(LimbeckError, match=r"min_completed_fraction = 0.5"):
        await soon(evaluate(run))


async def test_graders_see_the_last_turn(tmp_path: Path) -> None:
    async def play(prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
        await generate(first(prompt))
        await generate(Context(np.array([5]), parent=0))
        return generate.episode()

    run = run_of(tmp_path, environment=Script(play), limits=FREE)
    found = await soon(collect(run, run.task.train, run.sampling(3)))
    last = [" ".join(map(str, r.token_ids[r.turns[-1].start :])) for r in found.rollouts]
    assert [text for _, text in run.task.graded] == last  # type: ignore[attr-defined]


async def test_turns_say_whose_they_are_and_what_they_earned(tmp_path: Path) -> None:
    found = await play_of(tmp_path, Script(two_turns))
    assert [(t.role, t.text, t.reward) for t in found.rollouts[0].turns] == [
        ("context", "", None), ("student", "", 1.0), ("tool", "five", None), ("student", "", 0.5),
    ]  # fmt: skip
    assert found.rewards == [1.5] * len(found.rewards)


async def rollouts_of(tmp_path: Path, rewards: dict[int, list[float]]) -> Collected:
    """Samples of one prompt; sample k has a turn for each of its rewards, in a chain."""

    async def play(prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
        answer = await generate(first(prompt))
        for _ in rewards[key.sample][1:]:
            assert isinstance(answer, Sampled)
            answer = await generate(Context(np.array([5]), parent=answer.turn))
        return generate.episode(turn_rewards=rewards[key.sample])

    run = run_of(tmp_path, environment=Script(play), limits=FREE)
    return await soon(collect(run, run.task.train[:1], run.sampling(3), len(rewards)))  # type: ignore[no-any-return]


async def test_a_turns_advantage_is_its_return_against_the_same_turn_of_the_others(tmp_path: Path) -> None:
    found = await rollouts_of(tmp_path, {0: [1.0, 0.0, 2.0], 1: [0.0, 1.0]})
    section = TaskRewardConfig(of="turn", normalise="mean", weight=2.0)
    one, other = turn_advantages(found.rollouts, found.episodes, section)
    spans = [[t.end - t.start for t in r.turns if t.role == "student"] for r in found.rollouts]
    # Returns: 3, 2, 2 and 1, 1; means of the turns 2, 1.5, and 2 of the one that came so far.
    assert one.tolist() == [2.0] * spans[0][0] + [1.0] * spans[0][1] + [0.0] * spans[0][2]
    assert other.tolist() == [-2.0] * spans[1][0] + [-1.0] * spans[1][1]
    bare = [replace(r, turns=tuple(replace(t, reward=None) for t in r.turns)) for r in found.rollouts]
    with pytest.raises(DataError, match="turn 0 of prompt 'p1' has no reward"):
        turn_advantages(bare, found.episodes, section)


class Names:
    special_ids = frozenset({0})

    def __call__(self, ids: Sequence[int]) -> list[str]:
        return [f"<{i}>" for i in ids]


async def test_recorded_rollouts_have_their_turns_and_the_page_shows_them(tmp_path: Path) -> None:
    async def play(prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
        await generate(first(prompt))
        await generate(Context(np.array([5, 6]), parent=0, role="tool", text="five"))
        await generate(Context(np.array([1, 4]), reason="history was shortened"))
        return generate.episode(turn_rewards=[1.0, 0.0, -1.0])

    run = run_of(tmp_path, environment=Script(play), limits=FREE, names=Names())
    run.folder.path.mkdir(exist_ok=True)
    found = await soon(collect(run, run.task.train[:1], run.sampling(3)))
    await record(run, 1, found.samples)
    page = Rollouts(run.folder.rollouts)
    rows = [page.rollout(row["id"]) for row in page.index()["rows"] if row["source"] == "train"]
    one, other = sorted(rows, key=lambda row: row["segment"])  # type: ignore[arg-type,return-value]
    assert (one["segment_reason"], other["segment_reason"]) == ("", "history was shortened")
    first_rollout = found.rollouts[0]
    said = [run.decode(first_rollout.token_ids[t.start : t.end]) for t in first_rollout.turns if t.role == "student"]
    assert [(t["role"], t["text"], t["reward"]) for t in one["turns"]] == [
        ("student", said[0], 1.0), ("tool", "five", None), ("student", said[1], 0.0),
    ]  # fmt: skip
    tool = one["turns"][1]
    assert one["token_ids"][tool["start"] : tool["end"]] == [5, 6]
    assert one["trained"][tool["start"] : tool["end"]] == [False, False]
    assert one["turns"][0]["start"] == 0
    assert one["turns"][-1]["end"] == len(one["tokens"])
    assert [t["reward"] for t in other["turns"]] == [-1.0]
