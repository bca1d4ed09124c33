"""Episodes that cannot be made again are replayed after a kill, to the bit, and only after the weights they are of."""

from __future__ import annotations

import hashlib
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import limbeck
from limbeck.config.recipe import parse_recipe
from limbeck.errors import RunError
from limbeck.protocols import Generate
from limbeck.records import Context, Episode, Failure, Key, Prompt, Sampled
from limbeck.testing import BigramEngine
from limbeck.training.collect import collect
from limbeck.training.episodes import EpisodeLimits
from limbeck.training.journal import Journal
from tests.helpers import save_tiny
from tests.killed_runs import context as processes
from tests.tiny_runs import without_clock
from tests.training.test_collect import TABLE, Script, run_of

FREE = EpisodeLimits(timeout=30.0, max_turns=8, min_completed_fraction=0.5)


class Weather:
    """Gives the student what no seed fixes. Some second samples fail; the first ones, as in an evaluation, do not."""

    def __init__(self, build: Any) -> None:
        del build

    async def run(self, prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
        answer = await generate(Context(np.asarray(prompt.token_ids)))
        today = np.frombuffer(os.urandom(2), dtype=np.uint8) % 10 + 3
        if today[0] < 6 and key.sample == 1:
            return Failure(prompt.id, "run", "rain", "it rains")
        if isinstance(answer, Sampled):
            answer = await generate(Context(today.astype(np.int64), parent=answer.turn, role="tool", text=str(today)))
        return answer if isinstance(answer, Failure) else generate.episode(turn_rewards=[0.0, float(today[1])])


class KilledAfter:
    """An observer that ends the process with SIGKILL after a step, and notes every step's line."""

    def __init__(self, notes: Path, step: int | None) -> None:
        self.notes, self.step = notes, step

    def stepped(self, line: Any) -> None:
        with self.notes.open("a") as file:
            kept = without_clock(line)
            file.write(f"{line['step']} {hashlib.sha256(repr(sorted(kept.items())).encode()).hexdigest()}\n")
        if line["step"] == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *values: None


def train(table: dict[str, Any], notes: Path, step: int | None) -> None:
    limbeck.train(parse_recipe(table), observers=[KilledAfter(notes, step)])


def table_of(tmp_path: Path, lag: int) -> dict[str, Any]:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "{number}+", "answer": "1"}}\n' for number in range(12)))
    return {
        "name": "run", "output": str(tmp_path), "steps": 6, "threads": 1, "device": "cpu",
        "student": {"model": save_tiny(tmp_path / "student", 1)},
        "teacher": {"kind": "local", "model": save_tiny(tmp_path / "teacher", 2)},
        "task": {"kind": "file", "path": str(rows), "held_out": 2},
        "environment": {
            "kind": "python", "factory": "tests.training.test_journal:Weather", "min_completed_fraction": 0.5
        },
        "rollout": {"max_tokens": 5, "prompts_per_step": 3, "samples_per_prompt": 2, "lag": lag},
        "objective": {"task_reward": {"of": "turn"}},
        "checkpoint": {"every": 3}, "record": {"every": 0}, "eval": {"prompts": 2},
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("lag", [0, 1])
def test_a_killed_run_makes_the_same_updates_from_the_same_episodes(tmp_path: Path, lag: int) -> None:
    table, notes = table_of(tmp_path, lag), tmp_path / "notes"
    for step in (2, 5, None):
        child = processes.Process(target=train, args=(table, notes, step))
        child.start()
        child.join(timeout=120)
        assert child.exitcode == (0 if step is None else -signal.SIGKILL)
        journalled = sorted(path.name for path in (tmp_path / "run" / "journal").iterdir())
        assert all(name >= f"step-{3 * ((step or 6) // 3) + 1:06d}" for name in journalled), (
            "checkpoints cover the rest"
        )
    steps = [line.split() for line in notes.read_text().splitlines()]
    assert [int(step) for step, _ in steps] == [1, 2, 1, 2, 3, 4, 5, 4, 5, 6]
    assert len(set(map(tuple, steps))) == 6, "a step that is made again is the same step, to the last digit"


async def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    async def play(prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
        if prompt.id == "p2":
            return Failure(prompt.id, "run", "rain", "it rains")
        await generate(Context(np.asarray(prompt.token_ids)))
        await generate(Context(np.array([5]), parent=0, role="tool", text="fünf"))
        await generate(Context(np.array([6, 7]), reason="history was shortened"))
        return replace(generate.episode(turn_rewards=[0.1, 0.2, 0.3]), counts={"env/requests": 3, "env/errors/x": 0.5})

    run = run_of(tmp_path, environment=Script(play), limits=FREE, student_top=3, support="sampled")
    run = replace(run, journal=Journal(run.folder), step=4)
    first = await collect(run, run.task.train, run.sampling(3), 2, scored=False, journal=run.journal)
    silent = replace(run, engine=None)  # nobody is asked
    again = await collect(silent, run.task.train, run.sampling(3), 2, scored=False, journal=run.journal)
    assert repr(again) == repr(first)
    assert again.counts["env/requests"] == 3 * len(set(again.episodes)) > 0
    assert [r.turns for r in again.rollouts] == [r.turns for r in first.rollouts]
    for one, other in zip(first.rollouts, again.rollouts, strict=True):
        for name in ("token_ids", "trained", "logprobs", "versions", "top_ids"):
            before, after = getattr(one, name), getattr(other, name)
            assert (before.dtype, before.tobytes()) == (after.dtype, after.tobytes())


async def test_a_journal_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path, engine=BigramEngine(TABLE))
    journal = Journal(run.folder)
    await collect(run, run.task.train, run.sampling(3), scored=False, journal=journal)
    (path,) = run.folder.journal.iterdir()
    with pytest.raises(RunError, match="other prompts than step 0 asks for"):
        await collect(run, run.task.train[:3], run.sampling(3), scored=False, journal=journal)
    whole = path.read_bytes()
    for damaged in (whole[:-9], whole.replace(b"rollouts", b"rollsout", 1), b"", b"null\n", b"[" * 9999):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match=r"step-000000.jsonl is not as it was written. Restore it, or remove it"):
            await collect(run, run.task.train, run.sampling(3), scored=False, journal=journal)


def test_a_step_behind_a_gap_is_not_replayed(tmp_path: Path) -> None:
    """Its weights are gone: the run went on from an older checkpoint."""
    folder = run_of(tmp_path / "run").folder
    folder.journal.mkdir(parents=True)
    for name in ("step-000002.jsonl", "step-000003.jsonl", ".step-000004.jsonl.half"):
        (folder.journal / name).write_text("")
    folder.open("", {})
    folder.close()
    assert not list(folder.journal.iterdir())
