"""Samples that share their prompt: the same hidden states, gradients and updates as each on its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from limbeck.config.learner import LocalLearnerConfig
from limbeck.config.objective import ReverseKLConfig
from limbeck.errors import ModelError
from limbeck.learners.batch import make_batch, request_for
from limbeck.learners.local import LocalLearner
from limbeck.models.causal_lm import CausalLM
from limbeck.models.equivalence import share_prompts, use_fused_forward
from limbeck.models.layout import Layout, TokenBatch, lay_out, split
from limbeck.models.prefix_tree import ATTENTION, build
from limbeck.models.states import LocalStates
from limbeck.records import HiddenScores, Key, Prompt, Rollout, Sampled, Sampling, Scored, single_turn
from limbeck.teachers.local import LocalTeacher
from tests import tiny

SHARING = ("llama", "llama-tied", "qwen2", "qwen3", "gpt2", "granite", "cohere", "phi")
NOT_SHARING = {"gemma2": "eager", "mistral": "sliding window of 5"}
SHAPES = ((5, (3, 1, 7)), (2, (4,)), (9, (2, 2)), (1, (6, 0, 5)), (4, (0,)))  # prompt, tokens of each response


def samples_of(shapes: Sequence[tuple[int, Sequence[int]]], seed: int = 0, shuffled: bool = True) -> list[Rollout]:
    """Rollouts of random tokens, of which those of one prompt need not stand together."""
    generator = np.random.default_rng(seed)
    rollouts = []
    for number, (stem, lengths) in enumerate(shapes):
        prompt = Prompt(f"p{number}", tuple(int(i) for i in generator.integers(5, tiny.VOCABULARY, stem)))
        for sample, length in enumerate(lengths):
            ids = np.array([*prompt.token_ids, *generator.integers(5, tiny.VOCABULARY, length)], dtype=np.int64)
            trained = np.arange(len(ids)) >= stem
            if length > 4:
                trained[stem + 2] = False  # masked, or another speaker's turn
            logprobs = generator.normal(-2, 0.3, int(trained.sum())).astype(np.float32)
            versions = np.zeros(len(logprobs), dtype=np.int64)
            key = Key(prompt.id, 0, sample)
            rollouts.append(Rollout(prompt, key, 0, ids, trained, logprobs, versions, Sampling(0.7, 16)))
    return [rollouts[i] for i in generator.permutation(len(rollouts))] if shuffled else rollouts


def sharing(family: str) -> CausalLM:
    """A float64 model that shares prompts."""
    lm = tiny.exact(family)
    assert share_prompts(lm) is None
    return lm


def test_worked_example_of_the_docstring() -> None:
    a, b, c, d, e, x, y, last = range(5, 13)
    one, two = Prompt("one", (a, b)), Prompt("two", (x,))
    rollouts = [rollout_of(one, c, d, last), rollout_of(one, e, last), rollout_of(two, y, last)]
    batch = laid_out(rollouts, "tree")
    assert batch.tokens_BL.tolist() == [[a, b, c, d, e, x, y]]
    assert batch.positions_BL.tolist() == [[0, 1, 2, 3, 2, 0, 1]]
    assert batch.predict_N.tolist() == [1, 2, 3, 1, 4, 5, 6]
    assert batch.tree is not None
    assert [rows.places_BR.tolist() for rows in batch.tree.stretches] == [[[0, 1], [2, 3], [5, 6], [4, 0]]]
    (across,) = batch.tree.across
    assert (across.suffixes.places_BR.tolist(), across.prefixes.places_BR.tolist()) == ([[2, 3, 4]], [[0, 1]])
    assert across.bias_F11K is None
    few = batch.tree.few
    assert few is not None
    assert few.keys_SK.tolist() == [[0, 1, 2, 3], [0, 1, 4, 0]]
    assert (few.bias_S1RK[0, 0] == 0).tolist() == [[True, True, True, False], [True] * 4]


def rollout_of(prompt: Prompt, *response: int) -> Rollout:
    sampled = Sampled(np.array(response, dtype=np.int64), np.zeros(len(response), np.float32), "stop", 0)
    return single_turn(prompt, Key(prompt.id), sampled, Sampling(1.0, 4))


def laid_out(rollouts: Sequence[Rollout], layout: Layout) -> TokenBatch:
    return lay_out([request_for(rollout) for rollout in rollouts], layout)


@pytest.mark.parametrize("family", SHARING)
def test_hidden_states_and_gradients_are_those_of_each_sequence_alone(family: str) -> None:
    """float64, 1e-10: every sampled token's state, and every weight's gradient of a random sum of them."""
    lm, rollouts = sharing(family), samples_of(SHAPES)
    names = [name for name, _ in lm.model.named_parameters()]

    def gradients(hidden_Nd: Tensor) -> dict[str, Tensor]:
        loss = (lm.head().logits(hidden_Nd) * weight_NV).sum()
        found = torch.autograd.grad(loss, list(lm.model.parameters()), allow_unused=True)
        return {name: grad for name, grad in zip(names, found, strict=True) if grad is not None}

    alone = []
    for rollout in rollouts:
        if rollout.trained.any():
            before = torch.from_numpy(np.flatnonzero(rollout.trained) - 1)
            alone.append(lm.hidden(torch.from_numpy(rollout.token_ids)[None])[0, before])
    batch = laid_out(rollouts, "tree")
    shared_Nd = lm.hidden(batch.tokens_BL, batch.positions_BL, batch.tree)[0, batch.predict_N]
    assert_close(shared_Nd, torch.cat(alone), atol=1e-10, rtol=0)
    weight_NV = torch.randn(
        len(shared_Nd), lm.vocabulary, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    one, other = gradients(shared_Nd), gradients(torch.cat(alone))
    assert one.keys() == other.keys()
    exact = 1e-4 if family == "cohere" else 1e-10  # whose rotation of queries and keys rounds to float32
    for name, grad in one.items():
        assert_close(grad, other[name], atol=exact, rtol=exact)


@pytest.mark.parametrize("budget", [1, 14, 30, 10_000])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_updates_are_those_of_padded_rows(budget: int, checkpointing: bool) -> None:
    """Two AdamW steps, however the families are split."""

    def weights(layout: str, budget: int, checkpointing: bool) -> dict[str, Tensor]:
        lm = tiny.exact("qwen3")
        section = LocalLearnerConfig(
            lr=1e-2, layout=layout, micro_batch_tokens=budget, gradient_checkpointing=checkpointing
        )  # type: ignore[arg-type]
        learner = LocalLearner(lm, section, ReverseKLConfig(), 10, 0, teacher.heads)
        assert learner.layout == layout
        for _ in range(2):
            asyncio.run(learner.update(samples))
        return {name: value.detach().clone() for name, value in lm.model.named_parameters()}

    teacher = LocalTeacher("t", tiny.exact("llama"))
    rollouts = samples_of(SHAPES)
    scores = asyncio.run(teacher.score([request_for(rollout) for rollout in rollouts]))
    samples = [Scored(r, s) for r, s in zip(rollouts, scores, strict=True) if isinstance(s, HiddenScores)]
    plain, shared = weights("padded", 10_000, False), weights("tree", budget, checkpointing)
    for name, value in plain.items():
        assert_close(shared[name], value, atol=1e-10, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


def test_a_prompt_is_computed_once_and_last_tokens_not_at_all_by_learner_and_teacher() -> None:
    lm, teacher = tiny.fresh("llama"), LocalTeacher("t", tiny.fresh("qwen2"))
    assert (teacher.layout, teacher.unshared) == ("tree", None)
    learner = LocalLearner(lm, LocalLearnerConfig(), ReverseKLConfig(), 1, 0, teacher.heads)
    assert learner.layout == "tree", "the default, where the model can"
    rollouts = samples_of([(9, (3, 4, 5)), (7, (2, 2))])
    shapes: list[tuple[int, ...]] = []
    for model in (lm.model, teacher.lm.model):
        model.get_input_embeddings().register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
    scores = asyncio.run(teacher.score([request_for(rollout) for rollout in rollouts]))
    asyncio.run(learner.update([Scored(r, s) for r, s in zip(rollouts, scores, strict=True)]))  # type: ignore[arg-type]
    assert shapes == [(1, 9 + 2 + 3 + 4 + 7 + 1 + 1)] * 2


@given(
    st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(0, 9), min_size=1, max_size=5)), max_size=5),
    st.integers(1, 60),
)
def test_a_split_is_a_partition_within_budget_and_every_token_is_read_once(
    shapes: list[tuple[int, list[int]]], budget: int
) -> None:
    rollouts = samples_of(shapes)
    groups = split([request_for(rollout) for rollout in rollouts], budget, "tree")
    assert sorted(i for group in groups for i in group) == list(range(len(rollouts)))
    for group in groups:
        chosen = [rollouts[i] for i in group]
        batch = laid_out(chosen, "tree")
        count = batch.tokens_BL.numel()
        assert count <= budget or len(group) == 1
        families: dict[bytes, list[int]] = {}  # tokens of each response
        for rollout in chosen:
            stem = len(rollout.prompt.token_ids)
            families.setdefault(rollout.token_ids[:stem].tobytes(), []).append(len(rollout.token_ids) - stem)
        assert count == sum(
            max(1, len(stem) // 8 + own[0] - 1) if len(own) == 1 else len(stem) // 8 + sum(max(0, n - 1) for n in own)
            for stem, own in families.items()
        ), "each prompt once, no last token"
        if batch.tree is None:
            assert len({max(1, len(rollout.token_ids) - 1) for rollout in chosen}) == 1
            continue
        assert torch.cat([rows.tokens_n for rows in batch.tree.stretches]).sort().values.tolist() == list(range(count))


def test_prompts_of_one_name_that_differ_are_not_shared() -> None:
    """The tokens decide, not the name."""
    prompts = [Prompt("same", (5, 6, 7)), Prompt("same", (5, 6, 8)), Prompt("other", (5, 6, 7))]
    batch = laid_out([rollout_of(prompt, 9, 10, 11) for prompt in prompts], "tree")
    assert batch.tokens_BL.tolist() == [[5, 6, 7, 9, 10, 9, 10, 5, 6, 8, 9, 10]]


@pytest.mark.parametrize("family", NOT_SHARING)
def test_models_that_cannot_are_told_apart_and_computed_row_by_row(family: str) -> None:
    lm = tiny.fresh(family)
    before = lm.model.config._attn_implementation
    why = share_prompts(lm)
    assert why is not None
    assert NOT_SHARING[family] in why
    assert lm.model.config._attn_implementation == before
    teacher = LocalTeacher("t", tiny.fresh(family))
    assert teacher.layout == "padded"
    assert teacher.unshared is not None
    assert LocalLearner(tiny.fresh(family), LocalLearnerConfig(), ReverseKLConfig(), 1, 0).layout == "padded"
    with pytest.raises(ModelError, match=r"cannot share prompts.*learner\.layout = 'padded'"):
        LocalLearner(tiny.fresh(family), LocalLearnerConfig(layout="tree"), ReverseKLConfig(), 1, 0)


def test_a_model_that_ignores_the_tree_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that hands the tree to nobody sees every token before it."""
    lm = tiny.fresh("llama")
    plain = type(lm.model.base_model).forward

    def deaf(
        self: object, *args: object, tree: object = None, attention_mask: object = None, **kwargs: object
    ) -> object:
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(type(lm.model.base_model), "forward", deaf)
    why = share_prompts(lm)
    assert why is not None
    assert "differ by" in why
    assert lm.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("training", [True, False])
def test_the_proof_leaves_training_mode_alone_and_can_be_repeated(training: bool) -> None:
    lm = tiny.fresh("gpt2")
    lm.model.train(training)
    for _ in range(2):
        assert share_prompts(lm) is None
        assert lm.model.base_model.h[0].training is training
        assert lm.model.config._attn_implementation == ATTENTION


def test_a_saved_model_does_not_carry_the_name_of_our_attention(tmp_path) -> None:  # type: ignore[no-untyped-def]
    lm = sharing("llama")
    lm.model.save_pretrained(tmp_path)
    assert ATTENTION not in (tmp_path / "config.json").read_text()


def test_a_batch_of_scores_follows_its_rollouts() -> None:
    """Kinds, members and order are those of any other layout."""
    lm = sharing("llama")
    rollouts = [rollout for rollout in samples_of(SHAPES) if rollout.trained.any()]
    head = lm.head().detach()
    scored = [
        Scored(r, HiddenScores("t", LocalStates(torch.full((int(r.trained.sum()), 32), float(i))), "head"))
        for i, r in enumerate(rollouts)
    ]
    for micro in make_batch(scored, "tree", 20, torch.device("cpu"), {"head": head}).micro:
        chosen = [rollouts[i] for i in micro.members]
        assert micro.tokens.sampled_N.tolist() == [int(t) for r in chosen for t in r.response_ids]
        assert micro.teacher.hidden_Nd[:, 0].tolist() == [  # type: ignore[union-attr]
            float(i) for i, r in zip(micro.members, chosen, strict=True) for _ in r.response_ids
        ]


def test_a_bias_leaves_every_token_something_to_attend_to() -> None:
    """A row of a softmax over nothing would be NaN, also where it is padding."""
    tree = build([(3, [1, 4]), (2, []), (1, [2, 2])]).to(torch.device("cpu"))
    assert tree.few is not None
    assert torch.isfinite(tree.few.bias_S1RK).any(dim=-1).all()
    (across,) = tree.across
    assert across.bias_F11K is not None
    assert torch.isfinite(across.bias_F11K).any(dim=-1).all()
    assert build([(60, [5])]).few is None, "more keys than plain operations are for"


def test_stretches_of_very_different_lengths_are_not_padded_to_the_longest() -> None:
    tree = build([(3000, [20, 4000, 10]), (30, [1] * 200)])
    for rows in (*tree.stretches, *(part for one in tree.across for part in (one.prefixes, one.suffixes))):
        assert rows.places_BR.numel() < 2 * len(rows.tokens_n) + 2**16 / rows.places_BR.shape[1]


@pytest.mark.parametrize("layout", ["tree", "padded", "packed"])
@pytest.mark.parametrize("fused", [False, True])
def test_no_tensor_of_a_pass_grows_faster_than_its_sequences(layout: Layout, fused: bool) -> None:
    """Forward and backward; a tensor of [L, L] or [suffixes, R, K] would grow by four."""
    lm = tiny.fresh("llama")
    lm.model.config.max_position_embeddings = 4096
    assert (use_fused_forward(lm) if fused else share_prompts(lm)) is None

    def largest(length: int) -> int:
        rollouts = samples_of([(length, (length, length // 2, 3))], shuffled=False)
        with Largest() as watched:
            batch = laid_out(rollouts, layout)
            lm.states(batch.tokens_BL, batch.positions_BL, batch.predict_N, batch.tree).sum().backward()
        return watched.numel

    assert largest(1600) <= 2.1 * largest(800)


class Largest(TorchDispatchMode):
    """The most numbers of any tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        found = result if isinstance(result, tuple | list) else (result,)
        sizes = (x.untyped_storage().nbytes() // x.element_size() for x in found if isinstance(x, Tensor))
        self.numel = max(self.numel, *sizes, 0)
        return result
