"""Whole sequences without transformers: its states and gradients, for the models that are computed like Llama."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.testing import assert_close

from limbeck.config.learner import LocalLearnerConfig, LoraConfig
from limbeck.config.objective import ReverseKLConfig
from limbeck.learners.batch import request_for
from limbeck.learners.local import LocalLearner
from limbeck.models.causal_lm import CausalLM, precision
from limbeck.models.equivalence import use_fused_forward
from limbeck.models.layout import Layout, TokenBatch
from limbeck.models.widening import in_float32
from limbeck.records import Failure, Scored
from limbeck.teachers.local import LocalTeacher
from tests import tiny
from tests.models.test_decode import VARIANTS, exact_of, model_of, spoilt
from tests.models.test_prefix_tree import SHAPES, laid_out, samples_of

SAME_LENGTH = ((3, (5,)), (2, (6,)), (4, (4,)))  # plain rows, also in the layout "tree"
SLOW = {
    "gpt2": "not built like Llama", "gemma2": "not built like Llama", "mistral": "sliding window of 5",
    "granite": "not computed like Llama", "cohere": "not built like Llama", "phi": "not built like Llama",
}  # fmt: skip


def states_and_gradients(lm: CausalLM, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """States at the predictions, and every weight's gradient of a random sum of them."""
    states_Nd = lm.states(batch.tokens_BL, batch.positions_BL, batch.predict_N, batch.tree)
    weight_Nd = torch.randn(states_Nd.shape, dtype=states_Nd.dtype, generator=torch.Generator().manual_seed(1))
    weights = dict(lm.model.named_parameters())
    grads = torch.autograd.grad((states_Nd * weight_Nd).sum(), list(weights.values()), allow_unused=True)
    return states_Nd.detach(), {name: g for name, g in zip(weights, grads, strict=True) if g is not None}


@pytest.mark.parametrize("layout", ["padded", "tree"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_states_and_gradients_are_those_of_transformers(variant: str, layout: Layout) -> None:
    """float64, 1e-10."""
    lm = exact_of(variant)
    assert use_fused_forward(lm) is None
    for shapes in (SHAPES, SAME_LENGTH):
        batch = laid_out([rollout for rollout in samples_of(shapes) if rollout.trained.any()], layout)
        ours_Nd, ours = states_and_gradients(lm, batch)
        passes, lm.passes = lm.passes, None
        theirs_Nd, theirs = states_and_gradients(lm, batch)
        lm.passes = passes
        assert_close(ours_Nd, theirs_Nd, atol=1e-10, rtol=0)
        assert ours.keys() == theirs.keys()
        for name, grad in ours.items():
            assert_close(grad, theirs[name], atol=1e-10, rtol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("held", ["float32", "bfloat16", "bfloat16 autocast"])
@pytest.mark.parametrize("layout", ["padded", "tree", "packed"])
@pytest.mark.parametrize("variant", ["llama", "qwen2", "qwen3"])
def test_lower_precisions_are_as_near_to_the_truth_as_transformers_is(variant: str, layout: Layout, held: str) -> None:
    """Proven as it is used, states and gradients against float64."""
    batch = laid_out([rollout for rollout in samples_of(SHAPES) if rollout.trained.any()], layout)
    lm, autocast = model_of(variant), torch.bfloat16 if "autocast" in held else None
    if held == "bfloat16":
        in_bfloat16(lm)
    assert use_fused_forward(lm, autocast=autocast) is None
    with precision(lm, autocast):
        ours_Nd, ours = states_and_gradients(lm, batch)
        lm.passes = None
        theirs_Nd, theirs = states_and_gradients(lm, batch)
    assert ours_Nd.dtype == theirs_Nd.dtype
    assert {name: grad.dtype for name, grad in ours.items()} == {name: grad.dtype for name, grad in theirs.items()}
    true_Nd, true = states_and_gradients(tiny.in_float64(lm), batch)
    assert (ours_Nd - true_Nd).norm() < 1.5 * (theirs_Nd - true_Nd).norm() + 1e-6

    def far(grads: dict[str, Tensor]) -> float:
        """Mean over the weights; a single one's error varies by chance."""
        return sum(float((grads[name] - true[name]).norm() / true[name].norm()) for name in grads) / len(grads)

    assert far(ours) < 1.5 * far(theirs) + 1e-5


def in_bfloat16(lm: CausalLM) -> None:
    """As it would be loaded: rotary frequencies stay in float32."""
    for parameter in lm.model.parameters():
        parameter.data = parameter.data.bfloat16()


@pytest.mark.parametrize("autocast", [torch.bfloat16, None])
def test_passes_are_taken_under_the_autocast_they_were_proven_for(
    autocast: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny.fresh("llama")
    assert use_fused_forward(lm, autocast=autocast) is None
    batch = laid_out(samples_of(SAME_LENGTH), "padded")
    for under in (None, torch.bfloat16):
        ways = through(monkeypatch, lm)
        with precision(lm, under):
            lm.states(batch.tokens_BL, batch.positions_BL, batch.predict_N)
        assert ways[0] == ("fused" if under == autocast else "transformers")


@pytest.mark.parametrize("held", ["bfloat16", "bfloat16 autocast"])
@pytest.mark.parametrize(("name", "spoil"), spoilt(), ids=lambda v: v if isinstance(v, str) else "")
def test_a_model_that_only_looks_like_llama_is_told_apart_in_bfloat16(
    name: str, spoil: Callable[..., None], held: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny.fresh("llama")
    spoil(lm, monkeypatch)
    if held == "bfloat16":
        in_bfloat16(lm)
    autocast = torch.bfloat16 if "autocast" in held else None
    assert "not computed like Llama: log-probs differ" in str(use_fused_forward(lm, autocast=autocast))


def test_the_truth_of_a_narrow_model_leaves_it_as_it_was() -> None:
    lm = tiny.fresh("qwen3")
    in_bfloat16(lm)
    tokens = torch.arange(5, 15)[None]
    before, names = lm.hidden(tokens), [name for name, _ in lm.model.named_parameters()]
    with in_float32(lm):
        wide = lm.hidden(tokens)
    assert wide.dtype == torch.float32
    assert torch.equal(lm.hidden(tokens), before)
    assert [name for name, _ in lm.model.named_parameters()] == names
    assert_close(wide, tiny.in_float64(lm).hidden(tokens).float(), atol=1e-4, rtol=1e-4)


def test_what_is_computed_again_is_the_same() -> None:
    """Gradient checkpointing: fewer tensors kept, the same gradients to the last bit."""
    lm = exact_of("qwen3")
    batch = laid_out([rollout for rollout in samples_of(SHAPES) if rollout.trained.any()], "tree")
    kept: list[int] = []

    def grads(checkpointing: bool) -> tuple[dict[str, Tensor], int]:
        assert use_fused_forward(lm, checkpointing) is None
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            return states_and_gradients(lm, batch)[1], sum(kept)

    (plain, whole), (again, little) = grads(False), grads(True)
    assert little < whole / 2
    for name, grad in plain.items():
        assert torch.equal(again[name], grad)


def test_the_first_token_of_many_suffixes_is_read_off_their_prefix() -> None:
    """More predictions than tokens."""
    lm = exact_of("llama")
    assert use_fused_forward(lm) is None
    batch = laid_out(samples_of([(2, (1, 1, 1, 1, 1))]), "tree")
    assert len(batch.predict_N) == 5
    ours_Nd, ours = states_and_gradients(lm, batch)
    lm.passes = None
    theirs_Nd, theirs = states_and_gradients(lm, batch)
    assert_close(ours_Nd, theirs_Nd, atol=1e-10, rtol=0)
    for name, grad in ours.items():
        assert_close(grad, theirs[name], atol=1e-10, rtol=1e-10)


def test_sequences_laid_end_to_end_do_not_see_each_other() -> None:
    """They are a tree of prefixes without suffixes."""
    lm, found = exact_of("llama"), []
    assert use_fused_forward(lm) is None
    for layout in ("padded", "packed"):
        batch = laid_out([rollout for rollout in samples_of(SHAPES) if rollout.trained.any()], layout)  # type: ignore[arg-type]
        found.append(states_and_gradients(lm, batch))
    (rows_Nd, rows), (packed_Nd, packed) = found
    assert_close(packed_Nd, rows_Nd, atol=1e-10, rtol=0)
    for name, grad in rows.items():
        assert_close(packed[name], grad, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("family", SLOW)
def test_other_models_are_named_and_go_through_transformers(family: str, caplog: pytest.LogCaptureFixture) -> None:
    lm = tiny.fresh(family)
    with caplog.at_level(logging.INFO, logger="limbeck"):
        assert SLOW[family] in str(use_fused_forward(lm))
    assert lm.passes is None
    assert SLOW[family] in caplog.text


@pytest.mark.parametrize(("name", "spoil"), spoilt(), ids=lambda v: v if isinstance(v, str) else "")
def test_a_model_that_only_looks_like_llama_is_told_apart(
    name: str, spoil: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny.fresh("llama")
    spoil(lm, monkeypatch)
    assert "not computed like Llama: log-probs differ" in str(use_fused_forward(lm))


def test_a_model_of_the_same_states_and_other_gradients_is_told_apart() -> None:
    lm = tiny.fresh("llama")
    lm.model.base_model.layers[1].mlp.register_forward_hook(lambda module, args, out: out.detach())
    assert "gradients differ" in str(use_fused_forward(lm))


def test_activations_and_dropout_of_other_kinds_are_told_apart() -> None:
    for change, reason in (({"hidden_act": "gelu_pytorch_tanh"}, "GELUTanh"), ({"attention_dropout": 0.1}, "dropout")):
        model = tiny.build(tiny.config_of("llama", **change))
        assert reason in str(use_fused_forward(CausalLM("m", model, tiny.character_tokenizer(), tiny.VOCABULARY)))
    lm = tiny.fresh("llama")
    lm.model.base_model.layers[0].mlp.down_proj = nn.Sequential(lm.model.base_model.layers[0].mlp.down_proj)
    assert "down_proj is a Sequential" in str(use_fused_forward(lm))


def test_a_model_whose_parts_do_not_fit_is_told_apart() -> None:
    """StableLM has the same names, and rotates a quarter of each head."""
    config = transformers.StableLmConfig(**tiny.GATED, vocab_size=tiny.VOCABULARY, max_position_embeddings=64)
    lm = CausalLM("stablelm", tiny.build(config), tiny.character_tokenizer(), tiny.VOCABULARY)
    assert "StableLmForCausalLM" in str(use_fused_forward(lm))


@pytest.mark.parametrize("training", [True, False])
def test_the_proof_leaves_the_model_as_it_was(training: bool) -> None:
    lm = tiny.fresh("llama")
    lm.model.train(training)
    assert use_fused_forward(lm) is None
    assert lm.model.training is training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in lm.model.parameters())


def through(monkeypatch: pytest.MonkeyPatch, lm: CausalLM) -> list[str]:
    """Which way each pass goes, from now on."""
    ways: list[str] = []
    hidden, passes = lm.hidden, lm.passes

    def watched(way: str, call: Any) -> Any:
        return lambda *args, **kwargs: ways.append(way) or call(*args, **kwargs)

    monkeypatch.setattr(lm, "hidden", watched("transformers", hidden))
    monkeypatch.setattr(lm, "passes", None if passes is None else watched("fused", passes))
    return ways


@pytest.mark.parametrize(
    ("section", "way"),
    [
        ({}, "fused"),
        ({"layout": "padded"}, "fused"),
        ({"gradient_checkpointing": True}, "fused"),
        ({"layout": "packed"}, "fused"),
        ({"precision": "bfloat16"}, "fused"),
        ({"lora": LoraConfig(rank=2)}, "transformers"),
    ],
    ids=str,
)
def test_which_way_a_learner_goes(section: dict[str, Any], way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "lora" in section:
        pytest.importorskip("peft")
    teacher, lm = LocalTeacher("t", tiny.fresh("qwen2")), tiny.fresh("llama")
    learner = LocalLearner(lm, LocalLearnerConfig(**section), ReverseKLConfig(), 1, 0, teacher.heads)
    rollouts = samples_of(SHAPES)
    scores = asyncio.run(teacher.score([request_for(rollout) for rollout in rollouts]))
    samples = [Scored(r, s) for r, s in zip(rollouts, scores, strict=True) if not isinstance(s, Failure)]
    ways = through(monkeypatch, lm)
    asyncio.run(learner.update(samples))
    assert set(ways) == {way}
