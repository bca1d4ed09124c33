"""Served engines against a server that holds real weights: what they sample, and every way it can go wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.engines.served import ServedEngine
from limbeck.engines.sglang import SGLangServer
from limbeck.engines.vllm import VLLMServer
from limbeck.errors import EngineError
from limbeck.learners.local import LocalPolicy
from limbeck.models.causal_lm import CausalLM
from limbeck.records import Failure, Rollout, Sampling
from limbeck.wire.http import Pool, PoolSettings
from tests import tiny
from tests.fake_engine import FakeEngine

SAMPLING = Sampling(0.7, max_tokens=8, stop_ids=(1,), seed=3)
PROMPTS = tiny.prompts(4, 1, 9, 3)
TEXT = [int(i) for i in np.random.default_rng(5).integers(4, tiny.VOCABULARY, 40)]
KINDS = {"sglang": lambda: SGLangServer("disk"), "tensors": lambda: SGLangServer("tensors"), "vllm": VLLMServer}


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["llama", "llama-tied"])
def lm(request: pytest.FixtureRequest) -> CausalLM:
    return tiny.fresh(request.param)


def engine(kind: str, server: FakeEngine, folder: Path, **changes: Any) -> ServedEngine:
    settings = PoolSettings(timeout=20.0, patience=20.0, first_wait=0.01, longest_wait=0.1, table="engine")
    given = {
        "server": KINDS[kind](), "pool": Pool([server.url], settings), "folder": folder / "weights", "text": TEXT,
        "sampling": SAMPLING, "vocabulary": tiny.VOCABULARY, "tolerance": 0.02,
    }  # fmt: skip
    return ServedEngine(**{**given, **changes})


def stepped(lm: CausalLM, version: int, size: float = 0.02) -> LocalPolicy:
    """The learner's weights after some update, in place as it makes them."""
    generator = torch.Generator().manual_seed(version)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.add_(size * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return LocalPolicy(version, lm)


def rollouts(answers: Sequence[Rollout | Failure]) -> list[Rollout]:
    failures = [answer for answer in answers if isinstance(answer, Failure)]
    assert not failures, failures
    return [answer for answer in answers if isinstance(answer, Rollout)]


def truth(lm: CausalLM, rollout: Rollout) -> np.ndarray:
    """[S] the model's own log-probs at the rollout's temperature, by transformers alone."""
    with torch.inference_mode():
        logits = lm.model(torch.tensor([rollout.token_ids.tolist()])).logits[0, :-1].double()
    logp = torch.log_softmax(logits / rollout.sampling.temperature, dim=-1).numpy()
    return logp[np.arange(len(logp)), rollout.token_ids[1:]][rollout.trained[1:]]


async def test_it_samples_with_the_weights_it_was_given(kind: str, lm: CausalLM, tmp_path: Path) -> None:
    async with FakeEngine(tiny.lm_of("llama-tied" if lm.model.config.tie_word_embeddings else "llama").model) as server:
        one = engine(kind, server, tmp_path)
        for version in range(3):
            policy = stepped(lm, version) if version else LocalPolicy(0, lm)
            await one.load(policy)
            sampled = rollouts(await one.sample(PROMPTS, SAMPLING, 2))
            assert [(r.prompt.id, r.sample) for r in sampled] == [(p.id, k) for p in PROMPTS for k in range(2)]
            for rollout in sampled:
                assert rollout.policy_version == version
                assert rollout.finish == ("stop" if rollout.token_ids[-1] == 1 else "length")
                assert len(rollout.response_ids) == 8 or rollout.finish == "stop"
                np.testing.assert_allclose(rollout.behaviour_logprobs, truth(lm, rollout), atol=1e-4)
        assert len({tuple(r.token_ids) for r in sampled}) > len(PROMPTS)  # two samples of a prompt have their own dice
        assert one.tempered
        await one.close()
        assert not (tmp_path / "weights").exists()


async def test_raw_logprobs_are_found_out_and_recomputed(kind: str, tmp_path: Path) -> None:
    lm = tiny.fresh("llama")
    async with FakeEngine(lm.model) as server:
        server.raw_logprobs = True
        one = engine(kind, server, tmp_path)
        await one.load(stepped(lm, 1))
        assert not one.tempered
        assert any("recomputed by the learner" in measured for _, measured, _ in one.proofs)
        for rollout in rollouts(await one.sample(PROMPTS, SAMPLING)):
            np.testing.assert_allclose(rollout.behaviour_logprobs, truth(lm, rollout), atol=1e-4)


async def test_logprobs_that_are_neither_are_refused(kind: str, tmp_path: Path) -> None:
    lm = tiny.fresh("llama")
    async with FakeEngine(lm.model) as server:
        server.other_logprobs = 0.3
        with pytest.raises(EngineError, match=r"its log-probs of sampled tokens are 0\.3"):
            await engine(kind, server, tmp_path).load(LocalPolicy(0, lm))


@pytest.mark.parametrize("changes", [{"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.1}, {"greedy": True}])
async def test_of_a_cut_distribution_they_are_recomputed(changes: dict[str, Any], tmp_path: Path) -> None:
    """Greedy: the token's log-prob in the whole distribution. Cut: in what is left."""
    lm = tiny.fresh("llama")
    async with FakeEngine(lm.model) as server:
        one = engine("sglang", server, tmp_path)
        await one.load(LocalPolicy(0, lm))
        wide = rollouts(await one.sample(PROMPTS, SAMPLING))
        cut = LocalPolicy(0, lm).logprobs([replace(r, sampling=replace(SAMPLING, **changes)) for r in wide])
        for rollout, logprobs in zip(wide, cut, strict=True):
            expected = truth(lm, rollout)
            if changes.get("greedy"):
                np.testing.assert_allclose(logprobs, expected, atol=1e-4)
            else:
                assert (logprobs >= expected - 1e-4)[np.isfinite(logprobs)].all()
                assert not np.allclose(logprobs, expected, atol=1e-3)
        server.raw_logprobs = True  # whatever the server says of it
        (greedy, *_) = rollouts(await one.sample(PROMPTS[:1], replace(SAMPLING, greedy=True)))
        np.testing.assert_allclose(greedy.behaviour_logprobs, truth(lm, greedy), atol=1e-4)


# --- weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0.02, 3e-4])
async def test_an_update_that_is_accepted_and_not_made_stops_the_run(kind: str, size: float, tmp_path: Path) -> None:
    """Also one so small that the old weights are within the tolerance."""
    lm = tiny.fresh("llama")
    async with FakeEngine(lm.model) as server:
        one = engine(kind, server, tmp_path, tolerance=0.02 if size > 1e-3 else 1.0)
        await one.load(LocalPolicy(0, lm))
        await one.load(stepped(lm, 1, size))
        server.keeps_old_weights = True
        with pytest.raises(EngineError, match=r"update 2 (but does not hold them|but did not change).*Start "):
            await one.load(stepped(lm, 2, size))


async def test_weights_that_arrive_spoilt_stop_the_run(kind: str, tmp_path: Path) -> None:
    lm = tiny.fresh("llama")
    async with FakeEngine(lm.model) as server:
        one = engine(kind, server, tmp_path)
        await one.load(LocalPolicy(0, lm))
        server.spoils_weights = 0.5
        with pytest.raises(
            EngineError, match=r"update 1 but does not hold them: .* nats a token away .*engine\.tolerance"
        ):
            await one.load(stepped(lm, 1))


async def test_a_server_that_takes_no_weights_is_named(kind: str, tmp_path: Path) -> None:
    lm = tiny.fresh("llama")
    async with FakeEngine(lm.model) as server:
        server.refuses_weights = True
        with pytest.raises(EngineError, match=rf"{server.url} did not take the weights of update 0.*answered 400"):
            await engine(kind, server, tmp_path).load(LocalPolicy(0, lm))
        assert not list((tmp_path / "weights").glob("*"))


async def test_after_a_restart_the_weights_are_pushed_again_and_the_step_sampled_anew(
    kind: str, tmp_path: Path
) -> None:
    lm = tiny.fresh("llama")
    async with FakeEngine(lm.model) as server:
        one = engine(kind, server, tmp_path)
        await one.load(LocalPolicy(0, lm))
        await one.load(stepped(lm, 1))
        calm = rollouts(await one.sample(PROMPTS, SAMPLING, 2))
        server.restart_after = 3
        disturbed = rollouts(await one.sample(PROMPTS, SAMPLING, 2))
        assert server.restart_after is None
        for before, after in zip(calm, disturbed, strict=True):
            np.testing.assert_array_equal(before.token_ids, after.token_ids)
            np.testing.assert_allclose(after.behaviour_logprobs, truth(lm, after), atol=1e-4)


async def test_a_server_that_loses_them_every_time_stops_the_run(kind: str, tmp_path: Path) -> None:
    lm = tiny.fresh("llama")

    class Forgetful(FakeEngine):
        forgets = False

        def _sample(self, *args: Any) -> Any:
            if self.forgets:
                self.restart()
            return super()._sample(*args)

    async with Forgetful(tiny.lm_of("llama").model) as server:
        one = engine(kind, server, tmp_path)
        await one.load(stepped(lm, 1))
        server.forgets = True
        with pytest.raises(EngineError, match="lost the weights of update 1 4 times"):
            await one.sample(PROMPTS, SAMPLING)


async def test_a_cut_off_update_of_tensors_is_begun_again(tmp_path: Path) -> None:
    lm = tiny.fresh("llama")

    class Strict(FakeEngine):
        async def _answer(self, writer: Any, path: str, body: dict[str, Any]) -> bool:
            if path == "/begin_weight_update" and self.tensors_open:
                return await self._send(writer, 400, b'{"success": false, "message": "session is already open"}')
            return await super()._answer(writer, path, body)

    async with Strict(lm.model) as server:
        server.tensors_open = True
        await engine("tensors", server, tmp_path).load(LocalPolicy(0, lm))


# --- answers ------------------------------------------------------------------------------------------

WRONG = {
    "hides_stop": ("unfit", "leaves the stop token out|breaks off|0 tokens"),
    "goes_on": ("unfit", "went on after the stop token"),
    "breaks_off": ("short", "breaks off after 4 of 8 tokens"),
    "foreign_token": ("unfit", "sampled token 103, but student and teacher share a vocabulary of 100"),
}


@pytest.mark.parametrize("lie", list(WRONG))
async def test_answers_that_are_not_whole_are_failures(kind: str, lie: str, tmp_path: Path) -> None:
    lm = tiny.fresh("llama")
    async with FakeEngine(lm.model) as server:
        one = engine(kind, server, tmp_path)
        await one.load(LocalPolicy(0, lm))
        setattr(server, lie, True)
        stops = tuple(range(0, tiny.VOCABULARY, 3)) if lie in ("hides_stop", "goes_on") else ()
        answers = await one.sample(PROMPTS[:2], replace(SAMPLING, stop_ids=stops), 3)
        failures = [answer for answer in answers if isinstance(answer, Failure)]
        assert failures
        assert {failure.stage for failure in failures} == {"sample"}
        wanted, text = WRONG[lie]
        assert wanted in {failure.kind for failure in failures}
        assert any(re.search(text, failure.message) for failure in failures), failures[0].message


async def test_a_storm_on_the_wire_does_not_change_the_samples(kind: str, tmp_path: Path) -> None:
    lm = tiny.fresh("llama")
    async with FakeEngine(lm.model) as server:
        one = engine(kind, server, tmp_path)
        await one.load(LocalPolicy(0, lm))
        calm = rollouts(await one.sample(PROMPTS, SAMPLING, 2))
        server.drop = server.cut = server.fail = server.busy = server.corrupt = 0.15
        stormy = rollouts(await one.sample(PROMPTS, SAMPLING, 2))
        for before, after in zip(calm, stormy, strict=True):
            np.testing.assert_array_equal(before.token_ids, after.token_ids)
