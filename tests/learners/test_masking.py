"""What a teacher could not mark leaves the loss and its denominator, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from limbeck.errors import TeacherError
from limbeck.learners.batch import make_batch, trained_part
from limbeck.objectives import Head, Loss, ReverseKL, distillation_loss
from limbeck.records import Failure, HiddenScores, Prompt, Rollout, Sampling, Scored, TokenScores, TopKScores
from limbeck.training.collect import enough
from limbeck.training.metrics import describe_scores

V = 7
CPU = torch.device("cpu")


def rollout(seed: int, prompt: int = 2, response: int = 4) -> Rollout:
    rng = np.random.default_rng(seed)
    return Rollout(
        Prompt(f"p{seed}", tuple(int(i) for i in rng.integers(0, V, prompt))),
        0,
        rng.integers(0, V, prompt + response),
        np.arange(prompt + response) >= prompt,
        rng.normal(-2, 0.1, response).astype(np.float32),
        0,
        "length",
        Sampling(0.7, response),
    )


def scored(seed: int, known: list[bool] | None, top: bool) -> Scored:
    one = rollout(seed)
    rng, count = np.random.default_rng(seed + 100), len(one.response_ids)
    mask = None if known is None else np.array(known)
    sampled = rng.normal(-2, 0.5, count).astype(np.float32)
    ids = np.stack([rng.permutation(V)[:2] for _ in range(count)])
    tops = rng.normal(-1, 0.5, (count, 2)).astype(np.float32)
    if mask is not None:  # a left-out value is NaN: any use of it shows
        sampled[~mask], tops[~mask] = np.nan, np.nan
    errors = np.linspace(0.01, 0.04, count).astype(np.float32)
    if top:
        return Scored(one, TopKScores("t", 0.7, ids, tops, sampled, 0.0, errors, mask))
    return Scored(one, TokenScores("t", 0.7, sampled, 0.0, errors, mask))


@pytest.mark.parametrize("top", [False, True])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_left_out_positions_have_no_loss_and_no_share_of_the_denominator(top: bool, layout) -> None:
    """Against the sum over known positions taken by hand: a NaN or a wrong shift would show."""
    samples = [scored(0, [True, False, True, True], top), scored(1, None, top), scored(2, [False] * 4, top)]
    batch = make_batch(samples, layout, 64, CPU)
    assert batch.global_tokens == 3 + 4
    head = Head(torch.randn(V, 3, generator=torch.Generator().manual_seed(0)).requires_grad_())
    objective = Loss(ReverseKL(), support=2 if top else "sampled")
    seen = []
    for micro in batch.micro:
        hidden = torch.randn(len(micro.tokens.sampled_N), 3, requires_grad=True)
        loss, measured = distillation_loss(objective, 0.7, hidden, head, micro.tokens, micro.teacher, 7)
        assert torch.isfinite(loss)
        assert torch.isfinite(measured.objective).all()
        flat = micro.layout.tokens_BL.flatten()
        known = [trained_part(samples[i]).rollout for i in micro.members]
        before = [int(i) for rollout in known for i in rollout.token_ids[np.flatnonzero(rollout.trained) - 1]]
        assert flat[micro.layout.predict_N].tolist() == before
        seen += micro.tokens.sampled_N.tolist()
    kept = [samples[0].rollout.response_ids[[0, 2, 3]], samples[1].rollout.response_ids]
    assert sorted(seen) == sorted(np.concatenate(kept).tolist())


def test_every_aligned_array_is_cut_at_the_same_place() -> None:
    sample = scored(3, [False, True, True, False], top=True)
    hidden = torch.arange(8.0).view(4, 2)
    sample = replace(sample, reference=HiddenScores("r", 0.7, hidden, Head(torch.eye(2))))
    cut = trained_part(sample)
    assert isinstance(cut.scores, TopKScores)
    assert isinstance(sample.scores, TopKScores)
    assert cut.rollout.trained.tolist() == [False, False, False, True, True, False]
    assert cut.rollout.response_ids.tolist() == sample.rollout.response_ids[1:3].tolist()
    assert cut.rollout.behaviour_logprobs.tolist() == sample.rollout.behaviour_logprobs[1:3].tolist()
    assert cut.scores.ids.tolist() == sample.scores.ids[1:3].tolist()
    assert cut.scores.known is None
    assert cut.reference is not None
    assert cut.reference.hidden.tolist() == hidden[1:3].tolist()


def test_a_sample_that_is_wholly_known_is_itself() -> None:
    sample = scored(4, [True] * 4, top=False)
    assert trained_part(sample) is sample


def test_metrics_count_what_was_left_out_and_bound_only_what_was_trained() -> None:
    numbers = describe_scores([scored(0, [True, True, True, False], False), scored(1, None, False)], asked=3)
    assert numbers["teacher/samples_lost"] == 1
    assert numbers["teacher/tokens_left_out"] == 1
    assert numbers["teacher/error_bound/max"] == pytest.approx(0.04)
    alone = describe_scores([scored(0, [True, True, True, False], False)], asked=1)
    assert alone["teacher/error_bound/max"] == pytest.approx(0.03)
    assert "teacher/samples_lost" not in alone


def test_samples_may_be_lost_only_down_to_the_fraction() -> None:
    failure = Failure("p7", "score", "timeout", "no answer in 3 s.")
    assert enough(["a", failure, "b", "c"], 0.75) == [0, 2, 3]
    with pytest.raises(TeacherError, match=r"1 of 4 .*min_scored_fraction = 1.0.*p7.*timeout"):
        enough(["a", failure, "b", "c"], 1.0)
    with pytest.raises(TeacherError):
        enough([failure], 0.0)
    assert enough([], 1.0) == []
