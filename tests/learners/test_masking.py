"""What a teacher could not score leaves the loss and its denominator, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from limbeck.config.objective import ReverseKLConfig
from limbeck.learners.batch import make_batch
from limbeck.learners.valid_mask import apply_valid_mask
from limbeck.models.states import LocalStates
from limbeck.objectives import Dense, Head, distillation_loss, loss_of
from limbeck.records import HiddenScores, Key, Prompt, Rollout, Sampling, Scored, TokenScores, TopKScores

V = 7
CPU = torch.device("cpu")


def rollout(seed: int, prompt: int = 2, response: int = 4) -> Rollout:
    rng = np.random.default_rng(seed)
    return Rollout(
        prompt=Prompt(f"p{seed}", tuple(int(i) for i in rng.integers(0, V, prompt))),
        key=Key(f"p{seed}"),
        segment=0,
        token_ids=rng.integers(0, V, prompt + response),
        trained=np.arange(prompt + response) >= prompt,
        logprobs=rng.normal(-2, 0.1, response).astype(np.float32),
        versions=np.arange(response),
        sampling=Sampling(0.7, response),
        top_ids=rng.integers(0, V, (response, 2)),
    )


def scored(seed: int, valid: list[bool] | None, top: bool) -> Scored:
    one = rollout(seed)
    rng, count = np.random.default_rng(seed + 100), len(one.response_ids)
    mask = None if valid is None else np.array(valid)
    sampled = rng.normal(-2, 0.5, count).astype(np.float32)
    ids = np.stack([rng.permutation(V)[:2] for _ in range(count)])
    tops = rng.normal(-1, 0.5, (count, 2)).astype(np.float32)
    if mask is not None:  # a masked value is NaN: any use of it shows
        sampled[~mask], tops[~mask] = np.nan, np.nan
    errors = np.linspace(0.01, 0.04, count).astype(np.float32)
    if top:
        return Scored(one, TopKScores("t", 0.7, ids, tops, sampled, 0.0, errors, mask))
    return Scored(one, TokenScores("t", 0.7, sampled, 0.0, errors, mask))


@pytest.mark.parametrize("top", [False, True])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_masked_positions_have_no_loss_and_no_share_of_the_denominator(top: bool, layout) -> None:
    """Against the sum over valid positions taken by hand: a NaN or a wrong shift would show."""
    samples = [scored(0, [True, False, True, True], top), scored(1, None, top), scored(2, [False] * 4, top)]
    batch = make_batch(samples, layout, 64, CPU)
    assert batch.global_tokens == 3 + 4
    head = Head(torch.randn(V, 3, generator=torch.Generator().manual_seed(0)).requires_grad_())
    chosen = loss_of(ReverseKLConfig(support=2 if top else "sampled"))
    seen = []
    for micro in batch.micro:
        hidden = torch.randn(len(micro.tokens.sampled_N), 3, requires_grad=True)
        loss, measured = distillation_loss(chosen, 0.7, hidden, head, micro.tokens, micro.teacher, 7)
        assert torch.isfinite(loss)
        assert torch.isfinite(measured.objective).all()
        flat = micro.layout.tokens_BL.flatten()
        valid = [apply_valid_mask(samples[i]).rollout for i in micro.members]
        before = [int(i) for rollout in valid for i in rollout.token_ids[np.flatnonzero(rollout.trained) - 1]]
        assert flat[micro.layout.predict_N].tolist() == before
        seen += micro.tokens.sampled_N.tolist()
    kept = [samples[0].rollout.response_ids[[0, 2, 3]], samples[1].rollout.response_ids]
    assert sorted(seen) == sorted(np.concatenate(kept).tolist())


def test_every_aligned_array_is_cut_at_the_same_place() -> None:
    sample = scored(3, [False, True, True, False], top=True)
    hidden = torch.arange(8.0).view(4, 2)
    sample = replace(sample, reference=HiddenScores("r", LocalStates(hidden), "a head"))
    cut = apply_valid_mask(sample)
    assert isinstance(cut.scores, TopKScores)
    assert isinstance(sample.scores, TopKScores)
    assert cut.rollout.trained.tolist() == [False, False, False, True, True, False]
    assert cut.rollout.response_ids.tolist() == sample.rollout.response_ids[1:3].tolist()
    assert cut.rollout.logprobs.tolist() == sample.rollout.logprobs[1:3].tolist()
    assert cut.scores.ids.tolist() == sample.scores.ids[1:3].tolist()
    assert cut.scores.valid_mask is None
    assert cut.reference is not None
    assert cut.reference.states.fetch().tolist() == hidden[1:3].tolist()
    assert cut.rollout.versions.tolist() == [1, 2]
    assert cut.rollout.top_ids is not None
    assert sample.rollout.top_ids is not None
    assert cut.rollout.top_ids.tolist() == sample.rollout.top_ids[1:3].tolist()


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_masked_states_leave_the_loss_with_their_positions(layout) -> None:
    """States that were rounded too far are NaN: one that reached the loss would show."""
    states = torch.arange(12.0).view(4, 3)
    valid = np.array([True, False, False, True])
    states[~torch.from_numpy(valid)] = torch.nan
    errors = np.linspace(0.01, 0.04, 4).astype(np.float32)
    sample = Scored(rollout(0), HiddenScores("t", LocalStates(states), "h", errors=errors, valid_mask=valid))
    cut = apply_valid_mask(sample)
    assert isinstance(cut.scores, HiddenScores)
    assert cut.scores.errors is not None
    assert (cut.scores.errors == errors[valid]).all()
    batch = make_batch([sample], layout, 64, CPU, {"h": Head(torch.randn(V, 3))}, V)
    assert batch.global_tokens == 2
    (micro,) = batch.micro
    assert isinstance(micro.teacher, Dense)
    assert micro.teacher.hidden_Nd.tolist() == states[[0, 3]].tolist()
    assert micro.tokens.sampled_N.tolist() == rollout(0).response_ids[valid].tolist()


def test_a_sample_that_is_wholly_valid_is_itself() -> None:
    sample = scored(4, [True] * 4, top=False)
    assert apply_valid_mask(sample) is sample
