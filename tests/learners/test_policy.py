"""A policy's own log-probs, compared with transformers one sequence at a time; and how long its lease lasts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from limbeck.config.base import ModelConfig
from limbeck.config.learner import LoraConfig
from limbeck.errors import ModelError, StalePolicyError
from limbeck.learners import saving
from limbeck.learners.policy import LocalPolicy
from limbeck.models.causal_lm import CausalLM
from limbeck.models.loading import load_model
from limbeck.records import Failure, HiddenScores, ScoreRequest, Scores, TokenScores, TopKScores, request_of
from tests import tiny
from tests.helpers import learner_of, random_rollout, random_samples, tiny_lm

LENGTHS = [5, 1, 9, 3]


def score(policy: LocalPolicy, unit: Sequence[ScoreRequest]) -> list[Scores | Failure]:
    return asyncio.run(policy.score(unit))


def requests(temperature: float = 1.0) -> list[ScoreRequest]:
    """Of several lengths, one with a gap in its scored tokens and one with none."""
    rng = np.random.default_rng(0)
    rollouts = [random_rollout(rng, n, length) for n, length in enumerate((3, 20, 1, 9))]
    whole = [ScoreRequest(f"q{n}", r.token_ids, r.trained, temperature) for n, r in enumerate(rollouts)]
    gap = whole[1].scored.copy()
    gap[5:9] = False
    return [*whole, replace(whole[1], scored=gap), replace(whole[2], scored=np.zeros_like(whole[2].scored))]


def plain(lm: CausalLM, request: ScoreRequest) -> np.ndarray:
    """[S, V] at the request's temperature, by transformers."""
    return tiny.logprobs(lm.model, request.token_ids.tolist(), request.temperature)[request.scored[1:]].numpy()


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("budget", [10, 8192])
def test_log_probs_at_each_requests_own_temperature(family: str, budget: int) -> None:
    lm = tiny.lm_of(family)
    mixed = [replace(request, temperature=(0.5, 1.0, 1.7)[n % 3]) for n, request in enumerate(requests())]
    lm.model.train()
    answers = score(LocalPolicy(lm, budget=budget), mixed)
    assert lm.model.training  # as it was
    lm.model.eval()
    for request, answer in zip(mixed, answers, strict=True):
        assert isinstance(answer, TokenScores)
        expected = plain(lm, request)[np.arange(int(request.scored.sum())), request.scored_ids]
        np.testing.assert_allclose(answer.logprobs, expected, atol=1e-4)
        assert answer.temperature == request.temperature


def test_supports() -> None:
    lm, request = tiny.fresh(), replace(requests(0.7)[3], support=5)
    expected = plain(lm, request)
    policy = LocalPolicy(lm)
    given = np.array([[7, 3]] * 9)
    top, asked, full = score(policy, [request, replace(request, support=given), replace(request, support="full")])
    assert isinstance(top, TopKScores)
    assert isinstance(asked, TopKScores)
    np.testing.assert_allclose(top.logprobs, -np.sort(-expected, axis=1)[:, :5], atol=1e-4)
    np.testing.assert_array_equal(asked.ids, given)
    np.testing.assert_allclose(asked.logprobs, expected[:, [7, 3]], atol=1e-4)
    np.testing.assert_allclose(asked.logprobs_of_sampled, expected[np.arange(9), request.scored_ids], atol=1e-4)
    assert isinstance(full, HiddenScores)
    assert full.head == lm.head().fingerprint()
    with torch.no_grad():
        logq = torch.log_softmax(lm.head().logits(full.states.fetch()) / 0.7, -1)
    np.testing.assert_allclose(logq.numpy(), expected, atol=1e-4)


def test_what_cannot_be_scored_is_a_failure_and_the_rest_is_scored() -> None:
    lm = tiny.fresh()
    lm.vocabulary = 50
    unit = [
        request_of([1, 2, 3], 1, 1.0, id="fine"),
        request_of([1, 2, 60], 1, 1.0, id="outside the head"),
        request_of([1, 2, 1000], 1, 1.0, id="outside the model"),
        request_of([1] * (tiny.CONTEXT + 1), 1, 1.0, id="too long"),
        request_of([1, 2], 1, 1.0, 51, id="too many"),
        request_of([1, 2], 1, 1.0, np.array([[50]]), id="a support outside"),
        request_of([60, 2, 3], 1, 1.0, id="a context outside the head is fine"),
    ]
    answers = score(LocalPolicy(lm), unit)
    assert [isinstance(answer, TokenScores) for answer in answers] == [True, *[False] * 5, True]
    failures = [answer for answer in answers if isinstance(answer, Failure)]
    assert [failure.id for failure in failures] == [request.id for request in unit[1:6]]
    for failure, named in zip(failures, ("token 60", "0 to 99", "65 tokens", "top 51", "token 50"), strict=True):
        assert named in failure.message


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
class TestLease:
    def test_after_the_next_update_every_read_raises_and_names_both_versions(
        self, lora: LoraConfig | None, tmp_path: Path
    ) -> None:
        teacher = tiny_lm(2)
        learner = learner_of(tiny_lm(1), teacher, lora=lora)
        samples = random_samples(teacher, LENGTHS)
        asyncio.run(learner.update(samples))
        policy = asyncio.run(learner.publish())
        begun = policy.tensors()
        next(begun)
        asyncio.run(learner.measure(samples))
        assert score(policy, requests())  # measuring ends nothing
        asyncio.run(learner.update(samples))
        reads: list[Any] = [
            lambda: list(policy.tensors()),
            lambda: next(begun),
            lambda: policy.save(tmp_path / "saved"),
            lambda: policy.save_adapter(tmp_path / "adapter"),
            lambda: policy.hold(),
            lambda: score(policy, requests()),
        ]
        for read in reads:
            with pytest.raises(StalePolicyError, match=r"version 1 .*version 2\b"):
                read()
        assert not (tmp_path / "saved").exists()
        assert policy.version == 1  # facts may be read
        assert policy.info.name == "tiny-1"

    def test_a_held_policy_keeps_its_weights_and_the_learner_does_not_notice(
        self, lora: LoraConfig | None, tmp_path: Path
    ) -> None:
        teacher, lm, twin = tiny_lm(2), tiny_lm(1), tiny_lm(1)
        learner, alone = (learner_of(one, teacher, lora=lora, lr=1e-2) for one in (lm, twin))
        samples = random_samples(teacher, LENGTHS)
        for each in (learner, alone):
            asyncio.run(each.update(samples))
        policy = asyncio.run(learner.publish())
        held = policy.hold()
        before, answers = dict(held.tensors()), score(policy, requests())
        tensors = {name: tensor.clone() for name, tensor in policy.tensors()}
        for each in (learner, alone):
            asyncio.run(each.update(samples))
        moved = asyncio.run(learner.publish())
        assert any(not torch.equal(tensor, tensors[name]) for name, tensor in moved.tensors())
        for name, tensor in held.tensors():
            assert torch.equal(tensor, tensors[name]), name
            assert torch.equal(before[name], tensors[name]), name
        for one, other in zip(score(held, requests()), answers, strict=True):
            assert isinstance(one, TokenScores)
            assert isinstance(other, TokenScores)
            np.testing.assert_array_equal(one.logprobs, other.logprobs)
        held.save(tmp_path)
        saved = load_file(tmp_path / "model.safetensors")
        assert saved.keys() == tensors.keys()
        assert all(torch.equal(saved[name], tensors[name]) for name in saved)
        again = held.hold()
        for each in (learner, alone):
            asyncio.run(each.update(samples))
        for (name, tensor), (_, expected) in zip(
            lm.model.named_parameters(), twin.model.named_parameters(), strict=True
        ):
            assert torch.equal(tensor, expected), name
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in again.tensors())


def test_only_the_adapter_is_copied_to_hold() -> None:
    learner = learner_of(tiny_lm(1), lora=LoraConfig(rank=2))
    held = asyncio.run(learner.publish()).hold()
    assert sum(value.numel() for value in held._held.values()) == sum(p.numel() for p in learner.parameters.values())


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gpt2", "gemma2", "phi"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_folder_is_what_transformers_saves(
    family: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File for file and bit for bit, in one file and in shards."""
    lm = tiny.fresh(family)
    LocalPolicy(lm).save(tmp_path / "ours", dtype)
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    lm.model.to(getattr(torch, dtype)).save_pretrained(tmp_path / "theirs")
    lm.tokenizer.save_pretrained(tmp_path / "theirs")
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    names = {path.name for path in (tmp_path / "theirs").iterdir()}
    assert {path.name for path in (tmp_path / "ours").iterdir()} == names
    for name in names - {"model.safetensors"}:
        assert (tmp_path / "ours" / name).read_text() == (tmp_path / "theirs" / name).read_text(), name
    monkeypatch.setattr(saving, "SHARD_BYTES", 8000)
    LocalPolicy(lm).save(tmp_path / "ours", dtype)  # over what is there
    assert not (tmp_path / "ours" / "model.safetensors").exists()
    assert len(list((tmp_path / "ours").glob("model-*-of-*.safetensors"))) > 2
    loaded = type(lm.model).from_pretrained(tmp_path / "ours", dtype=getattr(torch, dtype))
    for (name, value), (_, expected) in zip(loaded.state_dict().items(), lm.model.state_dict().items(), strict=True):
        assert torch.equal(value, expected), name


def test_tensors_have_the_names_of_files_where_the_model_holds_them_otherwise(tmp_path: Path) -> None:
    """Mixtral's experts are one tensor in memory and two matrices each on disk."""
    config = transformers.MixtralConfig(
        **tiny.GATED, num_local_experts=2, vocab_size=tiny.VOCABULARY, bos_token_id=None, eos_token_id=1
    )
    tiny.build(config).save_pretrained(tmp_path / "theirs")
    tiny.character_tokenizer().save_pretrained(tmp_path / "theirs")
    policy = LocalPolicy(load_model(ModelConfig(model=str(tmp_path / "theirs")), torch.device("cpu")))
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    assert any("experts.1" in name for name in theirs)
    policy.save(tmp_path / "ours")
    for found in (dict(policy.tensors()), load_file(tmp_path / "ours" / "model.safetensors")):
        assert found.keys() == theirs.keys()
        assert all(torch.equal(found[name], theirs[name]) for name in theirs)


def test_a_dtype_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'int4'.*float32, bfloat16"):
        LocalPolicy(tiny.fresh()).save(tmp_path, "int4")


def test_facts() -> None:
    lm = tiny.fresh()
    info = LocalPolicy(lm, 3).info
    assert (info.vocabulary, info.context, info.stop_ids) == (tiny.VOCABULARY, tiny.CONTEXT, (1,))
    assert (info.dtype, info.natural_temperature) == ("float32", 1.0)
    lm.model.config.limbeck_temperature = 0.7
    assert LocalPolicy(lm).info.natural_temperature == 0.7
