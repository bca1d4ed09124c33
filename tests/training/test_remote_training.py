"""Whole runs against a teacher on loopback: storms cost time, a dead teacher costs nothing, another one is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from limbeck import api
from limbeck.config.recipe import CheckpointConfig, Recipe, parse_recipe
from limbeck.errors import ContractError, DataError, TeacherError
from tests import tiny
from tests.fake_engine import FakeEngine
from tests.fake_server import FakeServer, in_thread


def recipe(server: FakeServer, folder: Path, name: str, **teacher: Any) -> Recipe:
    given = {"kind": "sglang", "url": server.url, "top_logprobs": 90, "timeout": 3.0, "retry_seconds": 60.0} | teacher
    return parse_recipe(
        {
            "name": name, "output": str(folder), "steps": 4, "threads": 1,
            "student": {"model": tiny.folder_of("llama")},
            "teacher": {"vocabulary": tiny.VOCABULARY, **given},
            "task": {"kind": "arithmetic", "digits": 1, "train": 32, "held_out": 4},
            "rollout": {"temperature": 0.7, "max_tokens": 8, "prompts_per_step": 4},
            "objective": {"support": 5},
            "learner": {"lr": 1e-3},
            "eval": {"prompts": 2},
            "checkpoint": {"every": 1},
        }
    )  # fmt: skip


class AtStep3:
    """Does something as the third step's scoring begins."""

    def __init__(self, do: Callable[[], None]) -> None:
        self.do = do

    def phase(self, step: int, name: str) -> None:
        if (step, name) == (3, "score"):
            self.do()

    def started(self, step: int, steps: int) -> None: ...

    def stepped(self, line: Any) -> None: ...

    def evaluated(self, line: Any) -> None: ...

    def closed(self) -> None: ...


def weights(run: api.TrainResult) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "model" / "model.safetensors")


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights of an undisturbed run."""
    with in_thread(FakeServer(vocabulary=tiny.VOCABULARY)) as server:
        return weights(api.train(recipe(server, tmp_path_factory.mktemp("runs"), "calm")))


def test_a_stock_server_at_another_temperature_is_rescaled_and_reported(tmp_path: Path) -> None:
    with in_thread(FakeServer(vocabulary=tiny.VOCABULARY)) as server:
        result = api.train(recipe(server, tmp_path, "rescaled"))
    assert all(0 < line["teacher/error_bound/max"] <= 0.02 for line in result.steps)
    contract = (result.folder / "contract.jsonl").read_text()
    assert "method rescale" in contract
    assert "not taken" in contract


def test_a_storm_on_the_wire_does_not_change_the_weights(tmp_path: Path, calm: dict[str, torch.Tensor]) -> None:
    stormy = FakeServer(vocabulary=tiny.VOCABULARY, drop=0.1, cut=0.1, corrupt=0.2, fail=0.1, busy=0.1, binds=True)
    with in_thread(stormy) as server:
        assert equal(calm, weights(api.train(recipe(server, tmp_path, "stormy"))))
    assert stormy.requests > 20


@pytest.mark.parametrize("kind", ["sglang", "vllm"])
def test_answers_that_do_not_parse_do_not_change_the_weights(
    kind: str, tmp_path: Path, calm: dict[str, torch.Tensor]
) -> None:
    """As stock servers answer: without a digest."""
    garbling = FakeServer(vocabulary=tiny.VOCABULARY, garble=0.3, drop=0.05)
    with in_thread(garbling) as server:
        assert equal(calm, weights(api.train(recipe(server, tmp_path, "garbled", kind=kind))))


def test_a_run_whose_teacher_dies_is_resumed_to_the_same_weights(tmp_path: Path, calm: dict[str, torch.Tensor]) -> None:
    """With no checkpoint before the one that the teacher's end makes."""
    dying = FakeServer(vocabulary=tiny.VOCABULARY)
    with in_thread(dying) as server:
        settings = recipe(server, tmp_path, "killed", retry_seconds=0.5)
        settings = settings.model_copy(update={"checkpoint": CheckpointConfig(every=0)})

        def pull_the_plug() -> None:
            dying.fail = 1.0

        with pytest.raises(TeacherError):
            api.train(settings, observers=[AtStep3(pull_the_plug)])
        assert [path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()] == ["step-000002"]
        dying.fail = 0.0
        dying.set_weights(5)
        with pytest.raises(ContractError, match="another one than this run began with"):
            api.train(settings)
        dying.set_weights(0)
        resumed = api.train(settings)
        assert equal(calm, weights(resumed))
        assert [line["step"] for line in resumed.steps] == [1, 2, 3, 4]


def test_a_run_goes_on_with_the_weights_it_began_with_though_the_scores_round_alike(tmp_path: Path) -> None:
    """A server that sends fingerprints is known by them."""
    with in_thread(FakeServer(vocabulary=tiny.VOCABULARY, binds=True)) as server:
        settings = recipe(server, tmp_path, "close")
        api.train(settings.model_copy(update={"steps": 1}))
        server.logits_VV += 1e-6 * np.eye(tiny.VOCABULARY)
        with pytest.raises(ContractError, match="another one than this run began with: its weights have the finger"):
            api.train(settings)


def test_a_teacher_that_changes_mid_run_stops_it(tmp_path: Path) -> None:
    drifting = FakeServer(vocabulary=tiny.VOCABULARY)
    change = AtStep3(lambda: drifting.set_weights(5))
    with in_thread(drifting) as server, pytest.raises(ContractError, match="drifted"):
        api.train(recipe(server, tmp_path, "drifts"), observers=[change])
    assert len((tmp_path / "drifts" / "metrics.jsonl").read_text().splitlines()) == 3  # before, and two steps


def test_a_teacher_that_is_the_student_must_score_as_the_student(tmp_path: Path) -> None:
    def results(server: FakeServer, name: str) -> dict[str, str]:
        return {result.probe: result.measured for result in api.check(recipe(server, tmp_path, name))}

    honest = FakeEngine(tiny.lm_of("llama").model)
    honest.model = tiny.folder_of("llama")  # the name it reports
    with in_thread(honest) as server:
        assert float(results(server, "honest")["same weights"].split()[0]) < 1e-6
        honest.model = "another"
        assert "same weights" not in results(server, "another")
    impostor = FakeServer(vocabulary=tiny.VOCABULARY, model=tiny.folder_of("llama"))
    with in_thread(impostor) as server, pytest.raises(ContractError, match="is the student's own model, but"):
        results(server, "impostor")


def test_two_teachers_one_here_and_one_there(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "{i}+{i}=", "teacher": "{"ab"[i % 2]}"}}\n' for i in range(9)))
    with in_thread(FakeServer(vocabulary=tiny.VOCABULARY)) as server:
        one = recipe(server, tmp_path, "routed")
        section = {
            "kind": "routed",
            "teachers": {
                "a": one.teacher.model_dump(exclude_none=True),
                "b": {"kind": "local", "model": tiny.folder_of("llama-tied")},
            },
        }
        table = one.model_dump(mode="json", exclude_none=True) | {
            "teacher": section, "task": {"kind": "file", "path": str(rows), "held_out": 1, "chat": False}, "steps": 1,
        }  # fmt: skip
        result = api.train(parse_recipe(table))
        step = result.steps[0]
        assert {key for key in step if key.startswith(("teacher/a/", "teacher/b/", "seconds/score/"))} - {
            f"teacher/{name}/reverse_kl/{kind}/se" for name in "ab" for kind in ("sampled", "exact")
        } == {
            "teacher/a/samples", "teacher/a/left_out", "teacher/a/reverse_kl/sampled", "seconds/score/a",
            "teacher/b/samples", "teacher/b/reverse_kl/sampled", "teacher/b/reverse_kl/exact", "seconds/score/b",
        }  # fmt: skip
        assert step["teacher/a/samples"] + step["teacher/b/samples"] == step["responses"]
        low, high = sorted(step[f"teacher/{name}/reverse_kl/sampled"] for name in "ab")
        assert low < step["reverse_kl/sampled"] < high
        assert all(step[f"seconds/score/{name}"] <= step["seconds/score"] for name in "ab")
        rows.write_text(rows.read_text().replace('"a"', '"c"'))
        with pytest.raises(DataError, match="names the teacher 'c'"):
            api.train(parse_recipe(table | {"name": "unknown"}))


def test_a_run_that_knew_its_teachers_weights_goes_on_with_no_other(tmp_path: Path) -> None:
    """Nor where the digests are gone, or the text is asked in another way."""
    with in_thread(FakeServer(vocabulary=tiny.VOCABULARY, binds=True)) as server:
        settings = recipe(server, tmp_path, "known")
        api.train(settings.model_copy(update={"steps": 2}))
        kept = (tmp_path / "known" / "teacher-teacher.jsonl").read_bytes()
        server.binds = False
        with pytest.raises(ContractError, match="its weights have no fingerprint, expected"):
            api.train(settings)
        assert (tmp_path / "known" / "teacher-teacher.jsonl").read_bytes() == kept
        server.binds = True
        api.train(settings)
    with in_thread(FakeServer(vocabulary=tiny.VOCABULARY)) as server:
        settings = recipe(server, tmp_path, "unknown")
        api.train(settings.model_copy(update={"steps": 2}))
        server.knows_temperature = True
        with pytest.raises(ContractError, match="by the method 'rescale' then, by 'native' now"):
            api.train(settings)
