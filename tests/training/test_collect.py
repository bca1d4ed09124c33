"""One function samples, grades and scores: waves, occurrences, failures, environments of several turns."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.config.recipe import parse_recipe
from limbeck.environments.single_turn import SingleTurn
from limbeck.errors import EngineError, LimbeckError, TeacherError
from limbeck.protocols import Generate
from limbeck.records import (
    Context,
    Episode,
    Failure,
    Key,
    Prompt,
    Rollout,
    Sampled,
    SampleRequest,
    ScoreRequest,
    Scores,
    Support,
    TokenScores,
    View,
)
from limbeck.seeding import served_seed, uniforms
from limbeck.teacher_views.same import SameView
from limbeck.testing import BigramEngine, BigramTeacher, CountingLearner, FakeTask, Recorder, random_bigrams
from limbeck.training.collect import collect
from limbeck.training.episodes import EpisodeLimits
from limbeck.training.evaluation import evaluate
from limbeck.training.recording import record
from limbeck.training.run import Run
from limbeck.training.run_folder import RunFolder

V = 12
TABLE = random_bigrams(V)
PROMPTS = {f"p{number}": [1, number % V, 3] for number in range(6)}


def run_of(tmp_path: Path, **more: Any) -> Run:
    recipe = parse_recipe(
        {
            "student": {"model": "demo:student"}, "teacher": {"kind": "python", "factory": "a:b"},
            "task": {"kind": "python", "factory": "a:b"}, "rollout": {"temperature": 0.7, "max_tokens": 6},
        }
    )  # fmt: skip
    parts = {
        "task": FakeTask(PROMPTS), "environment": SingleTurn(), "engine": BigramEngine(TABLE, max_rows=4),
        "teacher": BigramTeacher(random_bigrams(V, 1)), "view": SameView(), "learner": CountingLearner(TABLE),
        "decode": lambda ids: " ".join(map(str, ids)), "stop_ids": (0,), "support": "sampled",
    }  # fmt: skip
    return Run(recipe=recipe, folder=RunFolder(tmp_path), **{**parts, **more})


async def test_samples_are_in_order_graded_and_scored_at_the_sampling_temperature(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    found = await collect(run, run.task.train, run.sampling(3), samples_per_prompt=2)
    assert [r.key for r in found.rollouts] == [Key(p.id, 0, k) for p in run.task.train for k in range(2)]
    assert all(sample.scores.temperature == 0.7 for sample in found.samples)  # type: ignore[union-attr]
    assert [s.reward for s in found.samples] == found.rewards == [1.0] * 10
    assert max(len(unit) for unit in run.engine.units) == 4  # type: ignore[attr-defined]


async def test_a_prompt_that_comes_twice_gets_other_samples_the_second_time(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    prompt = run.task.train[0]
    found = await collect(run, [prompt, prompt, prompt], run.sampling(3), samples_per_prompt=2)
    responses = {tuple(r.response_ids.tolist()) for r in found.rollouts}
    assert [r.key.occurrence for r in found.rollouts] == [0, 0, 1, 1, 2, 2]
    assert len(responses) >= 5


def test_the_first_occurrence_draws_what_it_always_drew() -> None:
    """The very bits of runs made before prompts could occur twice."""
    import hashlib

    key = int.from_bytes(hashlib.blake2b(b"7\x1fp\x1f2", digest_size=16).digest(), "little")
    before = np.random.Generator(np.random.Philox(key=key)).random(5)
    np.testing.assert_array_equal(uniforms(7, Key("p", 0, 2), 5), before)
    digest = hashlib.blake2b(b"7\x1fp\x1f2", digest_size=4).digest()
    assert served_seed(7, Key("p", 0, 2)) == int.from_bytes(digest, "little") >> 1
    draws = [uniforms(7, Key("p", o, 2, t), 5).tobytes() for o, t in ((0, 0), (1, 0), (0, 1), (1, 1))]
    assert len(set(draws)) == 4


async def test_what_a_prompt_gets_does_not_depend_on_its_company(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    together = await collect(run, run.task.train, run.sampling(3), 2)
    alone = await collect(run, run.task.train[2:3], run.sampling(3), 2)
    for one, other in zip(together.rollouts[4:6], alone.rollouts, strict=True):
        np.testing.assert_array_equal(one.token_ids, other.token_ids)


class Talk:
    """As many turns as the prompt's second token says, with a context of one token between them."""

    async def run(self, prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
        answer = await generate(Context(np.asarray(prompt.token_ids)))
        for turn in range(prompt.token_ids[1]):
            await asyncio.sleep(0.001 * (prompt.token_ids[1] % 3))  # tools take their time
            answer = await generate(Context(np.array([5]), parent=turn))
        return answer if isinstance(answer, Failure) else generate.episode(reward=0.25)


async def test_turns_of_many_sessions_are_decoded_in_waves_that_follow_from_the_requests(tmp_path: Path) -> None:
    def shape(engine: BigramEngine) -> list[list[tuple[str, int]]]:
        return [sorted((r.key.prompt_id, r.key.turn) for r in unit) for unit in engine.units]

    engines = [BigramEngine(TABLE, max_rows=None) for _ in range(2)]
    for engine in engines:
        run = run_of(tmp_path, environment=Talk(), engine=engine)
        found = await collect(run, run.task.train, run.sampling(3))
    assert shape(engines[0]) == shape(engines[1])
    assert [len(unit) for unit in engines[0].units] == [5, 5, 4, 3, 2, 1]  # p1 ... p5 have 2 ... 6 turns
    assert [len([t for t in r.turns if t.role == "student"]) for r in found.rollouts] == [2, 3, 4, 5, 6]
    assert found.rewards == [0.25] * 5
    assert run.task.graded == []  # type: ignore[attr-defined]


async def test_an_engine_that_fails_fails_the_whole_wave_once(tmp_path: Path) -> None:
    class Broken(BigramEngine):
        async def sample(self, unit: Sequence[SampleRequest]) -> list[Sampled | Failure]:
            raise EngineError("the engine is broken")

    run = run_of(tmp_path, engine=Broken(TABLE))
    with pytest.raises(EngineError, match="broken"):
        await collect(run, run.task.train, run.sampling(3))


async def test_failures_of_sampling_are_named_and_never_filled_in(tmp_path: Path) -> None:
    class Partial(BigramEngine):
        async def sample(self, unit: Sequence[SampleRequest]) -> list[Sampled | Failure]:
            answers = await super().sample(unit)
            return [Failure(unit[0].key.prompt_id, "sample", "timeout", "no answer"), *answers[1:]]

    run = run_of(tmp_path, engine=Partial(TABLE, max_rows=None))
    with pytest.raises(LimbeckError, match="1 of 5 prompts failed to sample, the first 'p1': timeout: no answer"):
        await collect(run, run.task.train, run.sampling(3))


class Forgetful(BigramTeacher):
    async def score(self, unit: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        answers = await super().score(unit)
        return [Failure(unit[0].id, "score", "timeout", "no answer"), *answers[1:]]


async def test_what_could_not_be_scored_is_left_out_up_to_the_recipes_share(tmp_path: Path) -> None:
    run = run_of(tmp_path, teacher=Forgetful(TABLE), min_scored_fraction=0.8)
    found = await collect(run, run.task.train, run.sampling(3))
    assert [sample.rollout.prompt.id for sample in found.samples] == ["p2", "p3", "p4", "p5"]
    assert len(found.rollouts) == 5
    run.min_scored_fraction = 0.9
    with pytest.raises(TeacherError, match="1 of 5 responses could not be scored"):
        await collect(run, run.task.train, run.sampling(3))


async def test_what_the_teacher_could_not_be_shown_counts_as_not_scored(tmp_path: Path) -> None:
    class Narrow(SameView):
        def see(self, rollout: Rollout, support: Support) -> View | Failure:  # type: ignore[override]
            if rollout.prompt.id == "p2":
                return Failure("p2/0", "score", "too_long", "it is too long")
            return super().see(rollout, support)

    run = run_of(tmp_path, min_scored_fraction=0.8)
    run.view = Narrow()
    found = await collect(run, run.task.train, run.sampling(3))
    assert [sample.rollout.prompt.id for sample in found.samples] == ["p1", "p3", "p4", "p5"]
    for sample in found.samples:
        (alone,) = await run.teacher.score([SameView().see(sample.rollout, "sampled").request])
        assert isinstance(alone, TokenScores)
        assert isinstance(sample.scores, TokenScores)
        np.testing.assert_array_equal(sample.scores.logprobs, alone.logprobs)
    run.min_scored_fraction = 1.0
    with pytest.raises(TeacherError, match=r"1 of 5 .*min_scored_fraction = 1.0.*'p2/0': too_long: it is too long"):
        await collect(run, run.task.train, run.sampling(3))


async def test_a_teacher_that_answers_too_little_is_named(tmp_path: Path) -> None:
    class Short(BigramTeacher):
        async def score(self, unit: Sequence[ScoreRequest]) -> list[Scores | Failure]:
            return (await super().score(unit))[:-1]

    run = run_of(tmp_path, teacher=Short(TABLE))
    with pytest.raises(TeacherError, match="gave 4 answers to 5 requests"):
        await collect(run, run.task.train, run.sampling(3))


class Squinting(SameView):
    """It cannot see what is said to `blind`."""

    def __init__(self, *blind: str) -> None:
        self.blind = blind

    def see(self, rollout: Rollout, support: Support) -> View:
        if rollout.prompt.id in self.blind:
            return Failure(rollout.prompt.id, "score", "other_prompt", "not its prompt.")  # type: ignore[return-value]
        return super().see(rollout, support)


async def test_what_a_teacher_cannot_be_shown_is_left_out_and_counted(tmp_path: Path, caplog: Any) -> None:
    limits = EpisodeLimits(min_completed_fraction=0.5)
    run = run_of(tmp_path, view=Squinting("p2"), limits=limits)
    found = await collect(run, run.task.train, run.sampling(3))
    full = await collect(run_of(tmp_path), run.task.train, run.sampling(3))
    assert [s.rollout.prompt.id for s in found.samples] == [r.prompt.id for r in found.rollouts if r.prompt.id != "p2"]
    there = {sample.rollout.prompt.id: sample for sample in full.samples}
    for sample in found.samples:
        assert np.array_equal(sample.scores.logprobs, there[sample.rollout.prompt.id].scores.logprobs)  # type: ignore[union-attr]
    assert found.views == {"view/failed/other_prompt": 1.0}
    assert "1 of 5 responses cannot be shown to the teacher (other_prompt: 1)" in caplog.text
    strict = run_of(tmp_path, view=Squinting("p2"))  # every episode must be whole
    with pytest.raises(TeacherError, match=r"1 of 5 responses cannot be shown .* Nothing was updated"):
        await collect(strict, run.task.train, run.sampling(3))
    every = run_of(tmp_path, view=Squinting(*(prompt.id for prompt in run.task.train)), limits=limits)
    with pytest.raises(TeacherError, match=r"5 of 5 responses cannot be shown to the teacher"):
        await collect(every, run.task.train, run.sampling(3))


async def soon(work: Any) -> Any:
    """A hang is a failure."""
    return await asyncio.wait_for(work, 5)


class Script:
    """An environment that does `play`."""

    def __init__(self, play: Any) -> None:
        self.run = play


async def never_asks(prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
    return generate.episode()


async def forgets_to_return(prompt: Prompt, key: Key, generate: Generate) -> Any:
    await generate(Context(np.asarray(prompt.token_ids)))


async def raises(prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
    if prompt.id == "p3":
        raise KeyError("tool")
    await generate(Context(np.asarray(prompt.token_ids)))
    return generate.episode()


async def rewards_nan(prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
    await generate(Context(np.asarray(prompt.token_ids)))
    return generate.episode(reward=float("nan"))


async def of_another(prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
    await generate(Context(np.asarray(prompt.token_ids)))
    rollouts = tuple(replace(rollout, key=Key("other")) for rollout in generate.episode().rollouts)
    return Episode(key, rollouts)


@pytest.mark.parametrize(
    ("play", "message"),
    [
        (never_asks, "environment Script, prompt 'p1': the episode has no rollouts. Call `generate`"),
        (forgets_to_return, "environment Script, prompt 'p1': run returned NoneType, expected generate.episode"),
        (raises, "environment Script raised KeyError on prompt 'p3': 'tool'"),
        (rewards_nan, "environment Script, prompt 'p1': the reward is nan"),
        (of_another, "environment Script, prompt 'p1': the episode has rollouts of another key"),
    ],
)
async def test_an_environment_that_does_wrong_is_named(tmp_path: Path, play: Any, message: str) -> None:
    run = run_of(tmp_path, environment=Script(play))
    with pytest.raises(LimbeckError, match=message):
        await soon(collect(run, run.task.train, run.sampling(3)))
    assert len(asyncio.all_tasks()) == 1, "nothing goes on sampling"


async def test_two_turns_at_once_are_two_segments_and_one_reward(tmp_path: Path) -> None:
    async def both(prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
        context = Context(np.asarray(prompt.token_ids))
        await asyncio.gather(generate(context), generate(context))
        return generate.episode()

    run = run_of(tmp_path, environment=Script(both))
    found = await soon(collect(run, run.task.train, run.sampling(3)))
    assert found.episodes == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert [rollout.segment for rollout in found.rollouts] == [0, 1] * 5
    assert len(run.task.graded) == 5  # type: ignore[attr-defined]


async def test_a_turn_that_is_not_waited_for_stops_nobody(tmp_path: Path) -> None:
    async def impatient(prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
        await generate(Context(np.asarray(prompt.token_ids)))
        later = asyncio.create_task(generate(Context(np.array([5]), parent=0)))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        if prompt.id != "p1":
            await later
        return generate.episode()

    run = run_of(tmp_path, environment=Script(impatient))
    found = await soon(collect(run, run.task.train, run.sampling(3)))
    assert len(found.rollouts) == 5


@pytest.mark.parametrize("answers", [lambda a: a[:-1], lambda a: [*a, a[0]], lambda a: []])
async def test_an_engine_that_answers_another_number_is_named(tmp_path: Path, answers: Any) -> None:
    class Wrong(BigramEngine):
        async def sample(self, unit: Sequence[SampleRequest]) -> list[Sampled | Failure]:
            return answers(await super().sample(unit))

    run = run_of(tmp_path, engine=Wrong(TABLE))
    with pytest.raises(EngineError, match=r"engine Wrong gave \d answers to 5 requests"):
        await soon(collect(run, run.task.train, run.sampling(3)))


async def test_what_an_engine_raises_is_not_blamed_on_the_environment(tmp_path: Path) -> None:
    class Wrong(BigramEngine):
        async def sample(self, unit: Sequence[SampleRequest]) -> list[Sampled | Failure]:
            raise ZeroDivisionError("in the engine")

    run = run_of(tmp_path, engine=Wrong(TABLE))
    with pytest.raises(ZeroDivisionError, match="in the engine"):
        await soon(collect(run, run.task.train, run.sampling(3)))


async def segments(prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
    """As many as the prompt's second token and one."""
    for _ in range(1 + prompt.token_ids[1]):
        await generate(Context(np.asarray(prompt.token_ids)))
    return generate.episode(reward=float(prompt.token_ids[1]))


async def test_a_reward_counts_once_however_many_segments_an_episode_has(tmp_path: Path) -> None:
    run = run_of(tmp_path, environment=Script(segments))
    evaluation = await soon(evaluate(replace(run, task=FakeTask(PROMPTS, held_out=5))))
    assert evaluation.prompts == 5
    assert evaluation.samples_per_prompt == 1
    assert evaluation.accuracy == 2.0, "the mean of 0 to 4, one each"


async def test_an_observer_that_raises_is_called_no_more_and_stops_nothing(tmp_path: Path, caplog: Any) -> None:
    class Broken(Recorder):
        def phase(self, step: int, name: str) -> None:
            self.events.append(name)
            raise OSError("no space left")

    broken, seen = Broken(), Recorder()
    run = run_of(tmp_path, observers=[broken, seen])
    await soon(collect(run, run.task.train, run.sampling(3)))
    assert broken.events == ["sample"]
    assert seen.events == ["sample 0", "grade 0", "score 0"]
    assert "observer Broken raised OSError in `phase` and is called no more: no space left" in caplog.text


@pytest.mark.parametrize("broken", ["names", "trace", "file"])
async def test_what_cannot_be_recorded_is_a_warning_whatever_it_is(
    tmp_path: Path, broken: str, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Names:
        special_ids = frozenset({0})

        def __call__(self, ids: Sequence[int]) -> list[str]:
            return [f"<{i}>" for i in ids] if broken != "names" else [][0]

    class Learner(CountingLearner):
        async def trace(self, samples: Any, top: int) -> Any:
            return (await super().trace(samples, top))[: -1 if broken == "trace" else None]

    def full(*_: Any) -> None:
        raise OSError("no space left")

    run = run_of(tmp_path, names=Names(), learner=Learner(TABLE))
    if broken == "file":
        monkeypatch.setattr("limbeck.training.recording.write_rollouts", full)
    found = await collect(run, run.task.train, run.sampling(3))
    await soon(record(run, 1, found.samples))
    assert "the rollouts of step 1 are not recorded" in caplog.text
