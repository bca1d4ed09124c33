"""Whole-weight checkpoints: a resumed learner makes the updates of one that was not stopped, or is refused."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from limbeck.config.base import ModelConfig
from limbeck.errors import RunError, StalePolicyError
from limbeck.learners.local import LocalLearner
from limbeck.models.causal_lm import CausalLM
from limbeck.models.loading import load_model
from tests.helpers import learner_of, random_samples, tiny_lm

LENGTHS = [5, 1, 9, 3]


def learner(lm: CausalLM) -> LocalLearner:
    return learner_of(lm, tiny_lm(2), lr=1e-2, schedule="linear", warmup_steps=2)


def update(one: LocalLearner, steps: int) -> LocalLearner:
    for _ in range(steps):
        asyncio.run(one.update(random_samples(tiny_lm(2), LENGTHS)))
    return one


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    update(learner(tiny_lm(1)), 3).save(folder)
    return folder


def loaded(folder: Path) -> CausalLM:
    return load_model(ModelConfig(model=str(folder / "model")), torch.device("cpu"))


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(folder: Path) -> None:
    straight = update(learner(tiny_lm(1)), 6)
    resumed = learner(loaded(folder))
    resumed.restore(folder)
    assert resumed.version == 3
    update(resumed, 3)
    for name, parameter in straight.parameters.items():
        assert torch.equal(parameter, resumed.parameters[name]), name


def test_optimizer_state_is_that_of_the_learner_that_was_saved(folder: Path) -> None:
    """Where each parameter lies: a fused optimizer takes no counters from elsewhere."""
    saved, resumed = update(learner(tiny_lm(1)), 3), learner(loaded(folder))
    resumed.restore(folder)
    for name, parameter in resumed.parameters.items():
        state, expected = resumed.optimizer.state[parameter], saved.optimizer.state[saved.parameters[name]]
        assert state.keys() == expected.keys()
        for key, value in state.items():
            assert torch.equal(value, expected[key]), (name, key)
            assert value.device == parameter.device


def test_state_is_not_taken_up_for_other_weights(folder: Path) -> None:
    with pytest.raises(RunError, match=r"learner\.safetensors belongs to other weights.*from the checkpoint's model/"):
        learner(tiny_lm(1)).restore(folder)  # as they were before the first update
    lm = loaded(folder)
    lm.model.lm_head.weight.data[0, 0] += 1
    with pytest.raises(RunError, match=r"'lm_head\.weight' differs"):
        learner(lm).restore(folder)


def test_restoring_ends_the_leases_of_what_was_published(folder: Path) -> None:
    resumed = learner(loaded(folder))
    policy = asyncio.run(resumed.publish())
    resumed.restore(folder)
    with pytest.raises(StalePolicyError, match=r"version 0 .*version 3"):
        policy.hold()


class TestDamage:
    def damaged(self, folder: Path, tmp_path: Path, match: str, **changes: torch.Tensor | None) -> None:
        """A copy of the state with some tensors changed or left out."""
        (tmp_path / "model").mkdir()
        path = folder / "learner.safetensors"
        state = {**load_file(path), **changes}
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        kept = {name: value for name, value in state.items() if value is not None}
        save_file(kept, tmp_path / "learner.safetensors", metadata=metadata)
        with pytest.raises(RunError, match=match):
            learner(loaded(folder)).restore(tmp_path)

    def test_a_state_for_a_weight_that_is_not_trained(self, folder: Path, tmp_path: Path) -> None:
        self.damaged(
            folder, tmp_path, "'other' that the student does not", **{"optimizer/exp_avg/other": torch.ones(1)}
        )

    def test_a_state_of_another_shape(self, folder: Path, tmp_path: Path) -> None:
        changed = {"optimizer/exp_avg/lm_head.weight": torch.ones(3)}
        self.damaged(folder, tmp_path, r"'exp_avg' of 'lm_head\.weight' in shape \[3\], expected \[27, 16\]", **changed)

    def test_a_weight_that_is_not_there(self, folder: Path, tmp_path: Path) -> None:
        changed = {"first_values/lm_head.weight": None}
        self.damaged(folder, tmp_path, r"other weights: 'lm_head\.weight' is in one of them only", **changed)

    def test_a_missing_file(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        with pytest.raises(RunError, match=r"cannot read the learner's state .*learner\.safetensors"):
            learner(loaded(folder)).restore(tmp_path)

    def test_a_file_of_something_else(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        save_file({"a": torch.ones(1)}, tmp_path / "learner.safetensors")
        with pytest.raises(RunError, match="does not say how many updates"):
            learner(loaded(folder)).restore(tmp_path)

    def test_a_folder_that_is_no_checkpoint(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="it has no model/"):
            learner(loaded(folder)).restore(tmp_path)
