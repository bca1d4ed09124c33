"""Layouts and plans: every trained token is read off at the position that predicts it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import ContractError
from limbeck.learners.batch import make_batch
from limbeck.models.layout import lay_out, plan
from limbeck.records import Prompt, Rollout, Sampling, Scored, TokenScores, TopKScores
from tests.helpers import random_rollout


def rollout_of(ids: list[int], trained: list[bool], temperature: float = 1.0, greedy: bool = False) -> Rollout:
    return Rollout(
        Prompt("p", (ids[0],)), 0, np.array(ids), np.array(trained), np.zeros(sum(trained), dtype=np.float32), 0,
        "stop", Sampling(temperature, 4, greedy=greedy),
    )  # fmt: skip


def token_scores(rollout: Rollout, temperature: float | None = None) -> TokenScores:
    given = rollout.sampling.temperature if temperature is None else temperature
    return TokenScores("t", given, np.zeros(int(rollout.trained.sum()), dtype=np.float32))


def test_worked_example_of_the_docstring() -> None:
    a, b, c, d = 5, 6, 7, 8
    rollouts = [rollout_of([a, b, c, d], [False, False, True, True]), rollout_of([a, c], [False, True])]
    padded = lay_out(rollouts, "padded")
    assert padded.tokens_BL.tolist() == [[a, b, c], [a, 0, 0]]
    assert padded.predict_N.tolist() == [1, 2, 3]
    packed = lay_out(rollouts, "packed")
    assert packed.tokens_BL.tolist() == [[a, b, c, a]]
    assert packed.positions_BL.tolist() == [[0, 1, 2, 0]]
    assert packed.predict_N.tolist() == [1, 2, 3]


@given(
    st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=6),
    st.sampled_from(["padded", "packed"]),
)
def test_predictions_precede_their_tokens(masks: list[list[bool]], layout: str) -> None:
    """For any masks, each `predict` position has the token before the trained one, in order; the last are not fed."""
    rollouts = []
    for number, mask in enumerate(masks):
        mask[0] = False
        rollouts.append(rollout_of([100 * number + i + 1 for i in range(len(mask))], mask))
    batch = lay_out(rollouts, layout)  # type: ignore[arg-type]
    before = [int(i) for rollout in rollouts for i in rollout.token_ids[np.flatnonzero(rollout.trained) - 1]]
    flat = batch.tokens_BL.flatten().tolist()
    assert [flat[i] for i in batch.predict_N.tolist()] == before
    fed = [max(1, len(mask) - 1) for mask in masks]
    assert len(flat) == (sum(fed) if layout == "packed" else len(fed) * max(fed))
    positions = batch.positions_BL.flatten().tolist()
    assert [positions[i] for i in batch.predict_N.tolist()] == [
        int(t) - 1 for rollout in rollouts for t in np.flatnonzero(rollout.trained)
    ]


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120), st.sampled_from(["padded", "packed"]))
def test_plan_is_a_partition_within_budget(lengths: list[int], budget: int, layout: str) -> None:
    groups = plan(lengths, budget, layout)  # type: ignore[arg-type]
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        sizes = [lengths[i] for i in group]
        used = sum(sizes) if layout == "packed" else max(sizes) * len(sizes)
        assert used <= budget or len(group) == 1


def test_plan_fills_the_budget() -> None:
    assert len(plan([10] * 8, 40, "padded")) == 2
    assert len(plan([10] * 8, 80, "packed")) == 1


def test_responses_of_no_tokens_train_nothing_and_lose_nothing() -> None:
    rng = np.random.default_rng(0)
    rollouts = [random_rollout(rng, i, length) for i, length in enumerate([0, 3, 0])]
    batch = make_batch([Scored(r, token_scores(r)) for r in rollouts], "padded", 100, torch.device("cpu"))
    assert batch.global_tokens == 3
    assert [micro.members for micro in batch.micro] == [(1,)]


def test_a_step_of_only_empty_responses_is_an_empty_batch() -> None:
    rollout = random_rollout(np.random.default_rng(0), 0, 0)
    batch = make_batch([Scored(rollout, token_scores(rollout))], "padded", 100, torch.device("cpu"))
    assert batch.micro == ()
    assert batch.global_tokens == 0


def test_kinds_of_scores_do_not_share_a_micro_batch() -> None:
    rng = np.random.default_rng(0)
    rollouts = [random_rollout(rng, i, 4) for i in range(3)]
    top = TopKScores("t", 0.7, np.zeros((4, 2), dtype=np.int64), np.zeros((4, 2), np.float32), np.zeros(4, np.float32))
    samples = [Scored(rollouts[0], token_scores(rollouts[0])), Scored(rollouts[1], top)]
    samples.append(Scored(rollouts[2], token_scores(rollouts[2])))
    batch = make_batch(samples, "padded", 1000, torch.device("cpu"))
    assert sorted(micro.members for micro in batch.micro) == [(0, 2), (1,)]


def test_a_score_at_another_temperature_is_refused() -> None:
    rollout = rollout_of([1, 2], [False, True], temperature=0.7)
    with pytest.raises(ContractError, match=r"scored prompt 'p' at temperature 1\.0.*sampled it at 0\.7"):
        make_batch([Scored(rollout, token_scores(rollout, 1.0))], "padded", 10, torch.device("cpu"))


def test_a_short_list_of_scores_is_refused() -> None:
    rollout = rollout_of([1, 2, 3], [False, True, True])
    short = TokenScores("t", 1.0, np.zeros(1, dtype=np.float32))
    with pytest.raises(ContractError, match="gave 1 scores for the 2 sampled tokens"):
        make_batch([Scored(rollout, short)], "padded", 10, torch.device("cpu"))


def test_greedy_rollouts_are_refused() -> None:
    rollout = rollout_of([1, 2], [False, True], greedy=True)
    with pytest.raises(ValueError, match="greedy"):
        make_batch([Scored(rollout, token_scores(rollout))], "padded", 10, torch.device("cpu"))


def test_mixed_temperatures_are_refused() -> None:
    rollouts = [rollout_of([1, 2], [False, True], temperature=t) for t in (0.7, 1.0)]
    with pytest.raises(ValueError, match="one temperature"):
        make_batch([Scored(r, token_scores(r)) for r in rollouts], "padded", 10, torch.device("cpu"))
