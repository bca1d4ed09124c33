"""Run folders that were damaged: one message that names the file and what to do, and doing it works."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import limbeck
from limbeck.config.recipe import Recipe, load_recipe, parse_recipe
from limbeck.errors import LimbeckError, RunError
from limbeck.learners.export import export
from tests.tiny_runs import table_of

STEPS = 4


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return table_of(
        tmp_path_factory.mktemp("models"),
        steps=STEPS,
        learner={"lr": 1e-2, "schedule": "linear"},
        eval={"every": 1, "prompts": 4},
        checkpoint={"every": 1, "keep_last": 3},
    )


def recipe(table: dict, output: Path, **changes: object) -> Recipe:
    return parse_recipe({**table, "output": str(output), **changes})


@pytest.fixture(scope="module")
def straight(table: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("straight")
    limbeck.train(recipe(table, output))
    return output


@pytest.fixture
def run(straight: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, with checkpoints of the steps 2, 3 and 4."""
    return Path(shutil.copytree(straight / "run", tmp_path / "run"))


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def steps_in(run: Path, folder: str) -> list[int]:
    return sorted(int(path.stem.removeprefix("step-")) for path in (run / folder).glob("step-*"))


def flip(path: Path, place: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def refused(table: dict, run: Path, **more: object) -> str:
    with pytest.raises(LimbeckError) as caught:
        limbeck.train(recipe(table, run.parent), **more)  # type: ignore[arg-type]
    return str(caught.value)


NEWEST = "checkpoints/step-000004"
DAMAGE: dict[str, Callable[[Path], None]] = {
    "a bit of the weights": lambda run: flip(run / NEWEST / "model/model.safetensors"),
    "a bit of the optimizer": lambda run: flip(run / NEWEST / "learner.safetensors"),
    "a byte of the tokenizer": lambda run: flip(run / NEWEST / "model/tokenizer.json", 100),
    "state of an older step": lambda run: _copy(run, "checkpoints/step-000002/state.json", f"{NEWEST}/state.json"),
    "learner of an older step": lambda run: _copy(
        run, "checkpoints/step-000002/learner.safetensors", f"{NEWEST}/learner.safetensors"
    ),
    "no state": lambda run: (run / NEWEST / "state.json").unlink(),
    "an empty state": lambda run: (run / NEWEST / "state.json").write_text(""),
    "no optimizer": lambda run: (run / NEWEST / "learner.safetensors").unlink(),
    "no model": lambda run: shutil.rmtree(run / NEWEST / "model"),
    "cut weights": lambda run: (run / NEWEST / "model/model.safetensors").write_bytes(b"\x10"),
    "a file too many": lambda run: (run / NEWEST / "model/pytorch_model.bin").touch(),
    "a file in place of the folder": lambda run: (shutil.rmtree(run / NEWEST), (run / NEWEST).touch()),  # type: ignore[func-returns-value]
}


def _copy(run: Path, source: str, target: str) -> None:
    shutil.copy(run / source, run / target)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused_and_an_older_one_taken(
    table: dict, straight: Path, run: Path, damage: str
) -> None:
    DAMAGE[damage](run)
    before = tree(run)
    message = refused(table, run)
    assert str(run / NEWEST) in message
    assert "add this to the same command:  --from-checkpoint 3" in message
    assert "removed and made again" in message
    assert tree(run) == before  # nothing was touched
    with pytest.raises(RunError, match=r"newest whole checkpoint is .*step-000003"):
        export(run, run.parent / "out")
    limbeck.train(recipe(table, run.parent), from_checkpoint=3)
    assert weights(run) == weights(straight / "run")
    assert steps_in(run, "checkpoints") == [2, 3, 4]


def test_an_exported_checkpoint_is_whole(run: Path) -> None:
    flip(run / NEWEST / "learner.safetensors")
    with pytest.raises(
        RunError, match=r"learner\.safetensors does not match.*newest whole checkpoint is .*step-000003"
    ):
        export(run, run.parent / "out")
    export(run / "checkpoints" / "step-000003", run.parent / "out")
    copied = shutil.copytree(run / "checkpoints" / "step-000003", run.parent / "mine")
    flip(copied / "model" / "model.safetensors")
    with pytest.raises(RunError, match=r"mine/model/model\.safetensors does not match"):
        export(copied, run.parent / "other")


def test_evaluating_a_checkpoint_and_the_finished_model(table: dict, run: Path) -> None:
    for folder in (run / NEWEST / "model", run / "model"):
        limbeck.evaluate(recipe(table, run.parent), model=folder)
        flip(folder / "model.safetensors")
        with pytest.raises(RunError, match=r"model\.safetensors does not match its digest"):
            limbeck.evaluate(recipe(table, run.parent), model=folder)


def test_no_whole_checkpoint(table: dict, straight: Path, run: Path) -> None:
    for step in (2, 3, 4):
        flip(run / f"checkpoints/step-{step:06d}/learner.safetensors")
    message = refused(table, run)
    assert "No checkpoint" in message
    assert "--fresh" in message
    limbeck.train(recipe(table, run.parent), fresh=True)
    assert weights(run) == weights(straight / "run")


class TestFromCheckpoint:
    def test_what_came_after_is_made_again(self, table: dict, straight: Path, run: Path) -> None:
        result = limbeck.train(recipe(table, run.parent, steps=2), from_checkpoint=2)
        assert [line["step"] for line in result.steps] == [1, 2]
        assert [line["step"] for line in result.evaluations] == [0, 1, 2]
        assert steps_in(run, "checkpoints") == [2]
        assert steps_in(run, "rollouts") == [1, 2]
        assert steps_in(run, "evaluations") == [0, 1, 2]
        assert weights(run) == (run / "checkpoints/step-000002/model/model.safetensors").read_bytes()
        limbeck.train(recipe(table, run.parent))
        assert weights(run) == weights(straight / "run")

    def test_a_step_that_is_not_there(self, table: dict, run: Path) -> None:
        before = tree(run)
        assert "there are those of: 2, 3, 4" in refused(table, run, from_checkpoint=1)
        assert tree(run) == before
        assert "there is no run in" in refused(table, run.parent / "absent" / "run", from_checkpoint=1)
        assert not (run.parent / "absent").exists()

    def test_a_damaged_one(self, table: dict, run: Path) -> None:
        flip(run / "checkpoints/step-000003/learner.safetensors")
        assert "--from-checkpoint 4" in refused(table, run, from_checkpoint=3)

    def test_the_finished_model_of_later_steps_goes(self, table: dict, run: Path) -> None:
        from limbeck.training.run_folder import RunFolder

        now = recipe(table, run.parent)
        folder = RunFolder(run)
        folder.open(now.to_toml(), now.model_dump(mode="json", exclude_none=True), from_checkpoint=3)
        folder.close()
        assert not (run / "model").exists()
        assert not (run / "state.json").exists()

    def test_not_with_fresh(self, table: dict, run: Path) -> None:
        with pytest.raises(TypeError, match="not both"):
            limbeck.train(recipe(table, run.parent), fresh=True, from_checkpoint=3)


class TestFinished:
    @pytest.mark.parametrize("damage", ["bit", "half", "missing"])
    def test_a_finished_model_is_written_anew_from_the_last_checkpoint(
        self, table: dict, straight: Path, run: Path, damage: str
    ) -> None:
        if damage == "bit":
            flip(run / "model" / "model.safetensors")
        elif damage == "half":
            (run / "model" / "config.json").unlink()
        else:
            shutil.rmtree(run / "model")
        limbeck.train(recipe(table, run.parent))
        assert weights(run) == weights(straight / "run")


def test_the_recipe_is_the_checkpoints_and_not_the_files(table: dict, run: Path) -> None:
    """Edited by hand, or lost: what the checkpoint was made by is in the checkpoint."""
    path = run / "recipe.toml"
    text = path.read_text()
    path.write_text(text.replace("seed = 0", "seed = 7", 1))
    with pytest.raises(RunError, match=r"another recipe: seed \(0 then, 7 now\)"):
        limbeck.train(load_recipe(path, [f"output={run.parent}"]))
    for damaged in ("", "= = =", "\x00"):
        path.write_text(damaged)
        limbeck.train(recipe(table, run.parent))
        assert path.read_text() == recipe(table, run.parent).to_toml()
    path.unlink()
    limbeck.train(recipe(table, run.parent))


class TestFormerFormat:
    """Checkpoints without digests still resume, with one warning; their recipe is the folder's."""

    @pytest.fixture
    def former(self, run: Path) -> Path:
        for step in (2, 3, 4):
            path = run / f"checkpoints/step-{step:06d}/state.json"
            kept = json.loads(path.read_text())
            path.write_text(json.dumps({"format": 1, "step": kept["step"], "metrics_bytes": kept["metrics_bytes"]}))
        (run / "state.json").unlink()
        (run / "recipe.toml").write_text((run / "recipe.toml").read_text().replace("steps = 4", "steps = 5", 1))
        return run

    def test_resumes(self, table: dict, former: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING, "limbeck"):
            limbeck.train(recipe(table, former.parent, learner={"lr": 1e-2, "schedule": "linear"}, steps=5))
        assert len([record for record in caplog.records if "kept no digests" in record.message]) == 1

    def test_a_learner_of_another_step(self, table: dict, former: Path) -> None:
        _copy(former, "checkpoints/step-000002/learner.safetensors", f"{NEWEST}/learner.safetensors")
        _copy(former, "checkpoints/step-000002/model/model.safetensors", f"{NEWEST}/model/model.safetensors")
        assert "is of step 4, but the learner's state in it is of 2 updates" in refused(table, former)

    @pytest.mark.parametrize("text", [None, "= =", "\xff"])
    def test_its_recipe_has_to_be_readable(self, table: dict, former: Path, text: str | None) -> None:
        (former / "recipe.toml").unlink()
        if text is not None:
            (former / "recipe.toml").write_bytes(text.encode("latin-1"))
        message = refused(table, former)
        assert "recipe.toml" in message
        assert "--fresh" in message


OTHER_NAMES = [
    ".DS_Store",
    "._step-000004",
    "step-000004 (copy)",
    "step-abc",
    "notes.txt",
    ".step-000009.half",
    "step-",
]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_other_names_are_left_alone(table: dict, straight: Path, run: Path, kind: str) -> None:
    for name in OTHER_NAMES:
        for folder, suffix in (("checkpoints", ""), ("rollouts", ".parquet"), ("evaluations", ".jsonl")):
            path = run / folder / (name + suffix)
            path.touch() if kind == "file" else (path / "inner").mkdir(parents=True)
    limbeck.train(recipe(table, run.parent), from_checkpoint=2)
    assert weights(run) == weights(straight / "run")
    assert {path.name for path in (run / "checkpoints").iterdir()} >= set(OTHER_NAMES) - {".step-000009.half"}
    assert not (run / "checkpoints" / ".step-000009.half").exists()


def test_a_checkpoint_that_was_moved_to_another_disk(table: dict, straight: Path, run: Path) -> None:
    there = run.parent / "elsewhere"
    (run / NEWEST).rename(there)
    (run / NEWEST).symlink_to(there)
    limbeck.train(recipe(table, run.parent))
    limbeck.train(recipe(table, run.parent), from_checkpoint=3)
    assert weights(run) == weights(straight / "run")
    assert there.is_dir()  # the link was ours to remove


class TestMetrics:
    @pytest.mark.parametrize("line", ["{", "[]", "null", "{}", '{"step": "1", "kind": "train"}', "\xff", "[" * 100_000])
    def test_a_damaged_line_is_named_and_the_file_can_be_removed(self, table: dict, run: Path, line: str) -> None:
        path = run / "metrics.jsonl"
        lines = path.read_bytes().split(b"\n")
        lines[1] = line.encode("latin-1").ljust(len(lines[1]))
        path.write_bytes(b"\n".join(lines))
        message = refused(table, run)
        damaged = f"{path} is damaged: line 2" in message  # of a line that made the file longer, its end is found first
        assert damaged or f"{path} is not the file" in message
        assert "remove the file" in message or "or remove it" in message
        path.unlink()
        result = limbeck.train(recipe(table, run.parent))
        assert [line["step"] for line in result.evaluations] == [STEPS]

    def test_a_missing_one_is_a_warning(self, table: dict, run: Path, caplog: pytest.LogCaptureFixture) -> None:
        (run / "metrics.jsonl").unlink()
        limbeck.train(recipe(table, run.parent))
        assert "metrics.jsonl is missing" in caplog.text

    def test_a_folder(self, table: dict, run: Path) -> None:
        (run / "metrics.jsonl").unlink()
        (run / "metrics.jsonl").mkdir()
        assert str(run / "metrics.jsonl") in refused(table, run)


@pytest.mark.parametrize("name", ["prompts.json", "teacher-teacher.jsonl"])
@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"train": 3}', '{"method": "local", "ids": 1, "values": "x"}', "\xff"]
)
def test_what_is_compared_on_resume(table: dict, run: Path, name: str, text: str) -> None:
    (run / name).write_bytes(text.encode("latin-1"))
    message = refused(table, run)
    assert str(run / name) in message
    assert "or remove it" in message
    (run / name).unlink()
    limbeck.train(recipe(table, run.parent))


@pytest.mark.parametrize("name", ["prompts.json", "teacher-teacher.jsonl", "metrics.jsonl"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(table: dict, run: Path, name: str) -> None:
    (run / name).unlink()
    os.mkfifo(run / name)
    assert name in refused(table, run)


@pytest.mark.parametrize("name", ["state.json", "recipe.toml"])
def test_a_pipe_in_place_of_what_is_written_anew(table: dict, straight: Path, run: Path, name: str) -> None:
    (run / name).unlink()
    os.mkfifo(run / name)
    limbeck.train(recipe(table, run.parent))
    assert weights(run) == weights(straight / "run")


def test_numbers_that_are_none_in_the_teachers_answer(table: dict, run: Path) -> None:
    path = run / "teacher-teacher.jsonl"
    kept = json.loads(path.read_text())
    for values in (kept["values"][:-1], ["x"] * len(kept["values"]), [None] * len(kept["values"])):
        path.write_text(json.dumps({**kept, "values": values}))
        assert "another one than this run began with" in refused(table, run)


def test_rollouts_of_any_content(table: dict, straight: Path, run: Path) -> None:
    (run / "rollouts" / "step-000003.parquet").write_text("not parquet")
    (run / "rollouts" / "step-000004.parquet").unlink()
    (run / "rollouts" / "step-000004.parquet").mkdir()
    limbeck.train(recipe(table, run.parent), from_checkpoint=2)
    assert weights(run) == weights(straight / "run")


def test_metrics_of_another_length_are_not_cut_inside_a_line(table: dict, run: Path) -> None:
    metrics = run / "metrics.jsonl"
    metrics.write_bytes(b"\xef\xbb\xbf" + metrics.read_bytes())  # what an editor may put in front
    before = metrics.read_bytes()
    assert "end inside a line" in refused(table, run, from_checkpoint=3)
    assert metrics.read_bytes() == before
