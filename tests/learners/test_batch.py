"""Layouts and plans: every trained token is read off at the position that predicts it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import ContractError, EngineError
from limbeck.learners.batch import Batch, make_batch, request_for
from limbeck.models.head import Head
from limbeck.models.layout import lay_out, plan
from limbeck.models.states import LocalStates
from limbeck.objectives import Dense
from limbeck.records import HiddenScores, Key, Prompt, Rollout, Sampling, Scored, TokenScores, TopKScores
from tests.helpers import random_rollout

HEAD = Head(torch.eye(8, 3))
OTHER = Head(2 * torch.eye(8, 3))


def rollout_of(ids: list[int], trained: list[bool], temperature: float = 1.0, greedy: bool = False) -> Rollout:
    return Rollout(
        prompt=Prompt("p", (ids[0],)),
        key=Key("p"),
        segment=0,
        token_ids=np.array(ids),
        trained=np.array(trained),
        logprobs=np.zeros(sum(trained), dtype=np.float32),
        versions=np.zeros(sum(trained), dtype=np.int64),
        sampling=Sampling(temperature, 4, greedy=greedy),
    )


def hidden(count: int, head: Head, width: int | None = None, scorer: str = "t", natural: float = 1.0) -> HiddenScores:
    states = LocalStates(torch.ones(count, width or head.weight_Vd.shape[1]))
    return HiddenScores(scorer, states, head.fingerprint(), natural)


def batch_of(*samples: Scored, heads: Sequence[Head] = (), vocabulary: int | None = None) -> Batch:
    by_fingerprint = {head.fingerprint(): head for head in heads}
    return make_batch(samples, "padded", 1000, torch.device("cpu"), by_fingerprint, vocabulary)


def token_scores(rollout: Rollout, temperature: float | None = None) -> TokenScores:
    given = rollout.sampling.temperature if temperature is None else temperature
    return TokenScores("t", given, np.zeros(int(rollout.trained.sum()), dtype=np.float32))


def test_worked_example_of_the_docstring() -> None:
    a, b, c, d = 5, 6, 7, 8
    rollouts = [rollout_of([a, b, c, d], [False, False, True, True]), rollout_of([a, c], [False, True])]
    requests = [request_for(rollout) for rollout in rollouts]
    padded = lay_out(requests, "padded")
    assert padded.tokens_BL.tolist() == [[a, b, c], [a, 0, 0]]
    assert padded.predict_N.tolist() == [1, 2, 3]
    packed = lay_out(requests, "packed")
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
    batch = lay_out([request_for(rollout) for rollout in rollouts], layout)  # type: ignore[arg-type]
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
    assert len(batch.micro) == 0
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
    with pytest.raises(ContractError, match=r"for prompt 'p' were computed at temperature 1\.0.*sampled at 0\.7"):
        batch_of(Scored(rollout, token_scores(rollout, 1.0)))
    top = TopKScores("t", 1.0, np.zeros((1, 2), np.int64), np.zeros((1, 2), np.float32), np.zeros(1, np.float32))
    with pytest.raises(ContractError, match=r"at temperature 1\.0"):
        batch_of(Scored(rollout, top))


def test_a_short_list_of_scores_is_refused() -> None:
    rollout = rollout_of([1, 2, 3], [False, True, True])
    with pytest.raises(ContractError, match="1 scores for 2 sampled tokens"):
        batch_of(Scored(rollout, TokenScores("t", 1.0, np.zeros(1, dtype=np.float32))))
    with pytest.raises(ContractError, match="3 scores for 2 sampled tokens"):
        batch_of(Scored(rollout, hidden(3, HEAD)), heads=[HEAD])
    wrong = TokenScores("t", 1.0, np.zeros(2, np.float32), valid_mask=np.ones(3, dtype=bool))
    with pytest.raises(ContractError, match=r"valid_mask of shape \(3,\) for 2"):
        batch_of(Scored(rollout, wrong))


def test_states_of_a_baked_model_are_refused_for_they_would_be_divided_twice() -> None:
    rollout = rollout_of([1, 2], [False, True], temperature=0.7)
    baked = hidden(1, HEAD, natural=0.7)
    with pytest.raises(ContractError, match=r"natural temperature 0\.7.*expected 1.*model that was baked"):
        batch_of(Scored(rollout, baked), heads=[HEAD])
    reference = hidden(1, HEAD, scorer="reference", natural=0.7)
    with pytest.raises(ContractError, match=r"'reference'.*natural temperature 0\.7"):
        batch_of(Scored(rollout, token_scores(rollout), reference=reference), heads=[HEAD])


def test_states_of_a_head_that_the_learner_does_not_have_are_refused() -> None:
    rollout = rollout_of([1, 2], [False, True])
    with pytest.raises(ContractError, match=rf"{OTHER.fingerprint()}.*does not have.*{HEAD.fingerprint()}"):
        batch_of(Scored(rollout, hidden(1, OTHER)), heads=[HEAD])
    with pytest.raises(ContractError, match="has none"):
        batch_of(Scored(rollout, hidden(1, OTHER)))
    with pytest.raises(ContractError, match="5 wide, but their output head takes 3"):
        batch_of(Scored(rollout, hidden(1, HEAD, width=5)), heads=[HEAD])


def test_samples_of_different_heads_do_not_share_a_micro_batch() -> None:
    """Of teachers and of references: the head of the wrong one would turn states into another distribution."""
    rollouts = [rollout_of([1, 2], [False, True]) for _ in range(6)]
    samples = [Scored(rollouts[i], hidden(1, (HEAD, OTHER)[i % 2])) for i in range(4)]
    samples += [Scored(rollouts[4 + i], hidden(1, HEAD), reference=hidden(1, (HEAD, OTHER)[i])) for i in range(2)]
    batch = batch_of(*samples, heads=[HEAD, OTHER])
    assert [micro.members for micro in batch.micro] == [(0, 2), (1, 3), (4,), (5,)]
    heads = [micro.teacher.head for micro in batch.micro if isinstance(micro.teacher, Dense)]
    assert heads == [HEAD, OTHER, HEAD, HEAD]
    assert [micro.reference and micro.reference.head for micro in batch.micro] == [None, None, HEAD, OTHER]


def test_ids_that_student_and_teacher_do_not_share_are_refused_by_name() -> None:
    rollout = rollout_of([9, 2, 7], [False, True, True])
    assert (
        batch_of(Scored(rollout, token_scores(rollout)), vocabulary=8).global_tokens == 2
    )  # the prompt's 9 is context
    with pytest.raises(EngineError, match=r"prompt 'p' has sampled token 7.*ids 0 to 6"):
        batch_of(Scored(rollout, token_scores(rollout)), vocabulary=7)
    ids = np.array([[1, 2], [3, 8]])
    top = TopKScores("t", 1.0, ids, np.zeros((2, 2), np.float32), np.zeros(2, np.float32))
    with pytest.raises(ContractError, match="name token 8 among the most likely"):
        batch_of(Scored(rollout, top), vocabulary=8)


def test_greedy_rollouts_are_refused() -> None:
    rollout = rollout_of([1, 2], [False, True], greedy=True)
    with pytest.raises(ValueError, match="greedy"):
        batch_of(Scored(rollout, token_scores(rollout)))


def test_mixed_temperatures_are_refused() -> None:
    rollouts = [rollout_of([1, 2], [False, True], temperature=t) for t in (0.7, 1.0)]
    with pytest.raises(ValueError, match="one temperature"):
        batch_of(*(Scored(r, token_scores(r)) for r in rollouts))
