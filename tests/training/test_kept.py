"""Whatever stops a run, its last update is in a checkpoint, and a run that goes on from there ends the same."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import limbeck
from limbeck.config.recipe import Recipe, parse_recipe
from limbeck.errors import ModelError, NonFiniteError, RunError, TeacherError
from limbeck.learners.local import LocalLearner
from limbeck.teachers.local import LocalTeacher
from limbeck.training.run import Run
from tests.tiny_runs import table_of

STEPS = 5
STOP = 3  # the step that is disturbed


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return table_of(
        tmp_path_factory.mktemp("models"),
        steps=STEPS,
        eval={"every": 3, "prompts": 4},
        checkpoint={"every": 0},
    )


def recipe(table: dict, output: Path, **changes: object) -> Recipe:
    return parse_recipe({**table, "output": str(output), **changes})


@pytest.fixture(scope="module")
def straight(table: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("straight")
    limbeck.train(recipe(table, output))
    return output


def weights(output: Path) -> bytes:
    return (output / "run" / "model" / "model.safetensors").read_bytes()


def checkpoints(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "run" / "checkpoints").iterdir())


def fail_in(phase: str, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """The phase of step `STOP` raises `error` once it has begun."""
    inner = Run.phase

    def outer(self: Run, name: str) -> Any:
        manager = inner(self, name)
        if name == phase and self.step == STOP:
            manager.gen.close()

            def fails() -> Any:
                raise error
                yield

            import contextlib

            return contextlib.contextmanager(fails)()
        return manager

    monkeypatch.setattr(Run, "phase", outer)


ERRORS: list[BaseException] = [
    TeacherError("the teacher is away"),
    KeyError("a user's grader"),
    MemoryError(),
    KeyboardInterrupt(),
    SystemExit(3),
]


@pytest.mark.parametrize("phase", ["sample", "grade", "score", "evaluate", "publish"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_every_phase_and_every_error(
    table: dict, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str, error: BaseException
) -> None:
    with monkeypatch.context() as patch:
        fail_in(phase, error, patch)
        with pytest.raises(type(error)):
            limbeck.train(recipe(table, tmp_path))
    made = STOP if phase in ("evaluate", "publish") else STOP - 1
    assert checkpoints(tmp_path) == [f"step-{made:06d}"]
    limbeck.train(recipe(table, tmp_path))
    assert weights(tmp_path) == weights(straight)


def test_a_teacher_away_during_the_last_evaluation(
    table: dict, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = LocalTeacher.score
    with monkeypatch.context() as patch:

        async def score(self: LocalTeacher, unit: Any) -> Any:
            metrics = tmp_path / "run" / "metrics.jsonl"
            if metrics.exists() and metrics.read_text().count('"kind": "train"') == STEPS:
                raise TeacherError("the teacher is away")
            return await honest(self, unit)

        patch.setattr(LocalTeacher, "score", score)
        with pytest.raises(TeacherError):
            limbeck.train(recipe(table, tmp_path, record={"every": 0}))
    assert checkpoints(tmp_path) == [f"step-{STEPS:06d}"]
    limbeck.train(recipe(table, tmp_path))
    assert weights(tmp_path) == weights(straight)


class TestUpdate:
    def test_what_fails_before_the_step_leaves_the_weights(
        self, table: dict, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for error in (RuntimeError("a mistake in an objective"), MemoryError()):
            with monkeypatch.context() as patch:
                self._after(2, error, patch)
                with pytest.raises(
                    ModelError, match=r"update 3 was not made: .*The weights are those before it"
                ) as got:
                    limbeck.train(recipe(table, tmp_path, record={"every": 0}, eval={"prompts": 4}))
            assert ("micro_batch_tokens" in str(got.value)) == isinstance(error, MemoryError)
            assert checkpoints(tmp_path) == ["step-000002"]
        limbeck.train(recipe(table, tmp_path))
        assert weights(tmp_path) == weights(straight)

    def test_what_fails_in_the_middle_of_it_is_in_no_checkpoint(
        self, table: dict, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import torch

        honest = torch.optim.AdamW.step

        def step(self: Any, *more: Any, **named: Any) -> Any:
            honest(self, *more, **named)
            raise OSError(errno.EIO, "half of it")

        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.AdamW, "step", step)
            with pytest.raises(OSError, match="half of it"):
                limbeck.train(recipe(table, tmp_path))
        assert checkpoints(tmp_path) == []
        limbeck.train(recipe(table, tmp_path))
        assert weights(tmp_path) == weights(straight)

    @staticmethod
    def _after(updates: int, error: Exception, patch: pytest.MonkeyPatch) -> None:
        honest = LocalLearner._gradient

        def fails(*_: Any) -> Any:
            raise error

        def gradient(self: LocalLearner, *more: Any) -> Any:
            if self.version == updates:
                self.forward.loss = fails  # type: ignore[method-assign]
            return honest(self, *more)

        patch.setattr(LocalLearner, "_gradient", gradient)


def test_a_number_that_is_not_finite_keeps_the_older_checkpoints(
    table: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have begun before: whoever looks into it has both."""
    fail_in("score", NonFiniteError("a NaN"), monkeypatch)
    with pytest.raises(NonFiniteError):
        limbeck.train(recipe(table, tmp_path, checkpoint={"every": 1, "keep_last": 1}))
    assert checkpoints(tmp_path) == ["step-000002"]
    with pytest.raises(NonFiniteError):
        limbeck.train(
            recipe(table, tmp_path / "b", checkpoint={"every": 1, "keep_last": 1}, eval={"every": 3, "prompts": 4})
        )
    monkeypatch.undo()
    fail_in("evaluate", NonFiniteError("a NaN"), monkeypatch)
    with pytest.raises(NonFiniteError):
        limbeck.train(recipe(table, tmp_path / "c", checkpoint={"every": 2, "keep_last": 1}))
    assert checkpoints(tmp_path / "c") == ["step-000002", "step-000003"]


def test_a_checkpoint_that_cannot_be_written_either_is_reported_beside(
    table: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_in("score", TeacherError("the teacher is away"), monkeypatch)

    def full(*_: object, **__: object) -> None:
        raise Exception("No space left on device (os error 28)")  # as tokenizers does

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", full)
    with pytest.raises(TeacherError, match="the teacher is away") as caught:
        limbeck.train(recipe(table, tmp_path))
    (note,) = caught.value.__notes__
    assert note.startswith("Update 2 could not be kept either. cannot write checkpoint")
    assert "Free some space" in note
    assert checkpoints(tmp_path) == []


@pytest.mark.parametrize("kind", [Exception, OSError])
def test_a_full_disk_at_the_tokenizer(
    table: dict, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise kind("No space left on device (os error 28)") if kind is Exception else OSError(errno.ENOSPC, "No space")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", full)
        with pytest.raises(RunError, match=r"cannot write checkpoint .*Free some space") as caught:
            limbeck.train(recipe(table, tmp_path, checkpoint={"every": 2}))
    assert not hasattr(caught.value, "__notes__")  # the same, and reported once
    assert checkpoints(tmp_path) == []
    limbeck.train(recipe(table, tmp_path))
    assert weights(tmp_path) == weights(straight)


def test_a_disk_that_fills_up_in_a_line_of_metrics(
    table: dict, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a line is not left in the middle of the file."""
    import io

    class Full(io.TextIOWrapper):
        def write(self, text: str) -> int:
            super().write(text[:20])
            self.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

    honest = Path.open

    def opened(self: Path, mode: str = "r", *more: Any, **named: Any) -> Any:
        text = self.read_text() if self.name == "metrics.jsonl" and mode == "a" and self.exists() else ""
        if text.count('"kind": "train"') == 2:
            return Full(honest(self, "ab"))
        return honest(self, mode, *more, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        with pytest.raises(RunError, match=r"cannot write .*metrics\.jsonl.*Free some space"):
            limbeck.train(recipe(table, tmp_path))
    assert checkpoints(tmp_path) == ["step-000003"]
    limbeck.train(recipe(table, tmp_path))
    assert weights(tmp_path) == weights(straight)
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


def test_observers_and_closing_end_no_run(table: dict, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Callable[..., None]:
            if name in ("started", "phase", "stepped", "evaluated", "closed"):
                return self._fails
            raise AttributeError(name)

        def _fails(self, *_: object) -> None:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    result = limbeck.train(recipe(table, tmp_path, steps=1), observers=[Broken()])
    assert len(result.steps) == 1
    assert "is called no more" in caplog.text
    assert all(record.exc_info is None for record in caplog.records)  # an output that is closed is no bug


def test_answers_with_lone_surrogates_are_written(table: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from limbeck.training.run_folder import RunFolder

    path = RunFolder(tmp_path).write_lines("evaluations/step-000001.jsonl", [{"response": "\ud800é"}])
    assert json.loads(path.read_bytes()) == {"response": "\ud800é"}
