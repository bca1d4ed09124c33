"""What `limbeck.train` and `limbeck.compare` tell and give, over runs of seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import limbeck
from limbeck import api
from limbeck.config import extras
from limbeck.config.recipe import parse_recipe
from limbeck.errors import DataError, LostLearnerError, ModelError, RecipeError, RunError
from tests.tiny_runs import table_of


class Recorder:
    """An observer that keeps the names of what it received."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.takes = ""

    def loading(self, takes: str) -> None:
        self.events.append("loading")
        self.takes = takes

    def proven(self, methods: Sequence[str]) -> None:
        self.events.append("proven")
        self.methods = list(methods)

    def started(self, step: int, steps: int) -> None:
        self.events.append("started")

    def phase(self, step: int, name: str) -> None: ...

    def stepped(self, line: Mapping[str, Any]) -> None:
        self.events.append("stepped")

    def evaluated(self, line: Mapping[str, Any]) -> None: ...

    def closed(self) -> None:
        self.events.append("closed")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("api")
    return table_of(folder, steps=1, output=str(folder / "runs"), record={"every": 0})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"of": "Teacher"}, "of = 'Teacher', expected 'student' or 'teacher'"),
        ({"of": "studnet"}, "of = 'studnet', expected 'student' or 'teacher'"),
        ({"of": None}, "of = None, expected"),
        ({"of": "teacher", "model": "demo:student"}, "not both"),
    ],
)
def test_what_evaluate_is_to_evaluate_is_said_once_and_well(
    table: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        limbeck.evaluate(table, **options)


@pytest.mark.parametrize("path", [None, 3])
def test_what_is_no_run_at_all(path: Any) -> None:
    with pytest.raises(RunError, match="expected the path of its folder"):
        limbeck.load_run(path)


def test_loading_comes_first_with_what_the_run_takes(table: dict[str, Any]) -> None:
    seen = Recorder()
    limbeck.train(table, ["name=seen"], observers=[seen])
    assert seen.events == ["loading", "proven", "started", "stepped", "closed"]
    assert seen.methods == ["teacher at T = 0.7: exact, in this process"]
    assert seen.takes.startswith("the run takes at most: this process ")
    assert seen.takes.endswith(" of disk")


def test_a_run_that_cannot_begin_is_closed_all_the_same(table: dict[str, Any], tmp_path: Path) -> None:
    seen = Recorder()
    with pytest.raises(ModelError):
        limbeck.train(table, ["name=none", f"student.model={tmp_path}/absent"], observers=[seen])
    assert seen.events == ["loading", "closed"]
    assert seen.takes == "", "of models that are not there nothing is known"


def test_a_fleet_that_cannot_be_taken_up_again_closes_who_saw_it_begin(
    table: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own first attempt lost the learner; the models of the second are gone. Trackers have lines to write yet."""
    honest, seen = api.assemble, Recorder()

    async def assembled(recipe: Any, *more: Any, again: bool) -> Any:
        if again:
            raise ModelError("gone")
        return await honest(recipe.model_copy(update={"cluster": None}), *more)

    async def loses_its_learner(run: Any) -> None:
        run.began = True
        run.report("started", 0, 1)
        raise LostLearnerError("it was killed.")

    monkeypatch.setattr(api, "assemble", assembled)
    monkeypatch.setattr(api, "train_run", loses_its_learner)
    names = ("started", "phase", "stepped", "evaluated", "closed")
    plain = SimpleNamespace(**{name: getattr(seen, name) for name in names})  # sees no loading
    with pytest.raises(ModelError, match="gone"):
        limbeck.train(table, ["name=lost", "cluster={learners=1}"], observers=[plain])
    assert seen.events == ["started", "closed"]


def test_an_observer_without_loading_is_left_alone(table: dict[str, Any]) -> None:
    seen = Recorder()
    names = ("started", "phase", "stepped", "evaluated", "closed")
    limbeck.train(table, ["name=plain"], observers=[SimpleNamespace(**{name: getattr(seen, name) for name in names})])
    assert seen.events == ["started", "stepped", "closed"]


def test_display_in_a_script_prints_lines(table: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    limbeck.train(table, ["name=silent"])
    assert capsys.readouterr().out == ""
    limbeck.train(table, ["name=shown"], display=True)
    assert "step 1/1: reverse KL" in capsys.readouterr().out


def test_a_teacher_that_does_not_sample_here_is_not_compared(
    table: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated: list[Any] = []
    monkeypatch.setattr(api, "evaluate", lambda recipe, model=None, of="student": evaluated.append((model, of)))
    teacher = {"kind": "limbeck", "url": "http://127.0.0.1:9"}
    recipe = parse_recipe({**table, "teacher": teacher, "objective": {"support": 2}})
    assert list(limbeck.compare(recipe, model=tmp_path)) == ["student before", "student after"]
    assert evaluated == [(None, "student"), (tmp_path, "student")]
    with pytest.raises(RunError, match="no run folder at"):
        limbeck.compare(table, ["name=never"])
    assert len(evaluated) == 2, "nothing is evaluated before it is known that all can be"


def test_what_was_given_needs_no_package(table: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda package: None)
    gym = {"kind": "reasoning_gym", "name": "basic_arithmetic"}
    with pytest.raises(RecipeError, match=r"limbeck\[gym\]"):
        limbeck.train({**table, "name": "gym", "task": gym})
    with pytest.raises(DataError, match="the given task is object"):
        limbeck.train({**table, "name": "gym", "task": gym}, task=object())  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"limbeck\[tensorboard\]"):
        limbeck.train({**table, "name": "board", "trackers": [{"kind": "tensorboard"}]})
    assert limbeck.evaluate({**table, "trackers": [{"kind": "tensorboard"}]}, ["eval.prompts=2"]).prompts == 2


def test_dir_lists_what_there_is_and_nothing_else() -> None:
    assert dir(limbeck) == sorted(limbeck.__all__)
