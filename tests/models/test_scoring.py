"""The one chunked log-prob, against a naive twin in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from limbeck.models import scoring
from limbeck.models.head import Head
from limbeck.models.sampling import truncate
from limbeck.models.scoring import score_hidden
from limbeck.records import Sampling

S, V, D, T = 23, 50, 12, 0.7
HEADS = {
    "plain": {},
    "bias": {"bias_V": True},
    "multiplier": {"multiplier": 0.4},
    "softcap": {"softcap": 2.0},
}


def question(dtype: torch.dtype = torch.float64, **more: object) -> tuple[Head, Tensor, Tensor]:
    """A head, hidden states and the ids that are scored."""
    generator = torch.Generator().manual_seed(0)
    weight_Vd = torch.randn(V, D, generator=generator, dtype=torch.float64)
    bias_V = torch.randn(V, generator=generator, dtype=torch.float64) if more.pop("bias_V", False) else None
    hidden_Sd = torch.randn(S, D, generator=generator, dtype=torch.float64)
    ids_S = torch.randint(V, (S,), generator=generator)
    head = Head(weight_Vd.to(dtype), None if bias_V is None else bias_V.to(dtype), **more)  # type: ignore[arg-type]
    return head, hidden_Sd.to(dtype), ids_S


def naive(head: Head, hidden_Sd: Tensor, temperature: float) -> list[list[float]]:
    """[S][V] log-probs by loops over floats."""
    rows = []
    for hidden in hidden_Sd.double().tolist():
        logits = []
        for token, weights in enumerate(head.weight_Vd.double().tolist()):
            logit = sum(w * h for w, h in zip(weights, hidden, strict=True))
            logit += 0.0 if head.bias_V is None else float(head.bias_V[token])
            logit *= head.multiplier
            logits.append(logit if head.softcap is None else head.softcap * math.tanh(logit / head.softcap))
        total = sum(math.exp(logit / temperature) for logit in logits)
        rows.append([logit / temperature - math.log(total) for logit in logits])
    return rows


@pytest.mark.parametrize("rows", [1, 5, S, 1000])
@pytest.mark.parametrize("name", HEADS)
def test_every_number_is_that_of_a_naive_loop_whatever_the_chunks(name: str, rows: int) -> None:
    head, hidden_Sd, ids_S = question(**HEADS[name])
    expected = naive(head, hidden_Sd, T)
    scores = score_hidden(head, hidden_Sd, ids_S, T, 7, entropy=True, chunk_bytes=rows * V * 8)
    assert scores.temperature == T
    for s in range(S):
        assert float(scores.logprobs_S[s]) == pytest.approx(expected[s][int(ids_S[s])], abs=1e-12)
        ranked = sorted(range(V), key=lambda v, s=s: -expected[s][v])[:7]
        assert scores.top_ids_SK is not None
        assert scores.top_logprobs_SK is not None
        assert scores.entropy_S is not None
        assert scores.top_ids_SK[s].tolist() == ranked
        assert scores.top_logprobs_SK[s].tolist() == pytest.approx([expected[s][v] for v in ranked], abs=1e-12)
        assert float(scores.entropy_S[s]) == pytest.approx(-sum(math.exp(p) * p for p in expected[s]), abs=1e-12)


def test_a_given_support_is_answered_in_its_own_order() -> None:
    head, hidden_Sd, ids_S = question()
    logp_SV = torch.tensor(naive(head, hidden_Sd, T), dtype=torch.float64)
    support_SK = torch.randint(V, (S, 4), generator=torch.Generator().manual_seed(1))
    scores = score_hidden(head, hidden_Sd, ids_S, T, support_SK, chunk_bytes=3 * V * 8)
    assert scores.top_ids_SK is not None
    assert torch.equal(scores.top_ids_SK, support_SK)
    assert_close(scores.top_logprobs_SK, logp_SV.gather(1, support_SK), atol=1e-12, rtol=0)
    same = score_hidden(head, hidden_Sd, ids_S, T, support_SK[0], chunk_bytes=3 * V * 8)
    assert_close(same.top_logprobs_SK, logp_SV[:, support_SK[0]], atol=1e-12, rtol=0)


def test_nothing_but_the_sampled_tokens_is_answered_unasked() -> None:
    scores = score_hidden(*question(), T)
    assert scores.top_ids_SK is scores.top_logprobs_SK is scores.entropy_S is None
    assert scores.logprobs_S.shape == (S,)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_lower_precisions_are_answered_in_float32(dtype: torch.dtype, error: float) -> None:
    head, hidden_Sd, ids_S = question(dtype)
    scores = score_hidden(head, hidden_Sd, ids_S, T, 3)
    assert scores.logprobs_S.dtype == torch.float32
    expected_SV = torch.tensor(naive(head, hidden_Sd, T), dtype=torch.float64)
    assert_close(scores.logprobs_S.double(), expected_SV.gather(1, ids_S[:, None])[:, 0], atol=error, rtol=0)


def test_autocast_around_it_changes_nothing() -> None:
    """The loss computes logits outside of autocast, and who compares with it must do so too."""
    head, hidden_Sd, ids_S = question(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        within_S = score_hidden(head, hidden_Sd, ids_S, T).logprobs_S
    assert torch.equal(within_S, score_hidden(head, hidden_Sd, ids_S, T).logprobs_S)


def test_truncation_renormalises_over_what_is_kept_at_this_temperature() -> None:
    head, hidden_Sd, _ = question()
    sampling = Sampling(temperature=99.0, max_tokens=1, top_k=5, top_p=0.9)
    logp_SV = truncate(torch.tensor(naive(head, hidden_Sd, T), dtype=torch.float64), replace(sampling, temperature=T))
    ids_S = logp_SV.argmax(dim=1)
    scores = score_hidden(head, hidden_Sd, ids_S, T, 2, entropy=True, truncation=sampling, chunk_bytes=3 * V * 8)
    assert_close(scores.logprobs_S, logp_SV.amax(dim=1), atol=1e-12, rtol=0)
    assert_close(scores.entropy_S, torch.special.entr(logp_SV.exp()).sum(1), atol=1e-12, rtol=0)


def test_no_position_gives_empty_answers_of_the_right_shapes() -> None:
    head, hidden_Sd, ids_S = question()
    scores = score_hidden(head, hidden_Sd[:0], ids_S[:0], T, 3, entropy=True)
    assert scores.top_logprobs_SK is not None
    assert scores.logprobs_S.shape == (0,)
    assert scores.top_logprobs_SK.shape == (0, 3)


def test_logits_of_one_chunk_alone_are_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    head, hidden_Sd, ids_S = question()
    seen: list[int] = []
    whole = Head.logits
    monkeypatch.setattr(Head, "logits", lambda self, h, *rest: seen.append(len(h)) or whole(self, h, *rest))
    score_hidden(head, hidden_Sd, ids_S, T, chunk_bytes=4 * V * 8 + 1)
    assert max(seen) == 4
    assert sum(seen) == S
    seen.clear()
    score_hidden(head, hidden_Sd, ids_S, T, chunk_bytes=1)
    assert seen == [1] * S
    assert scoring.CHUNK_BYTES == 48 * 2**20


def test_no_gradient_is_kept() -> None:
    head, hidden_Sd, ids_S = question()
    assert not score_hidden(head, hidden_Sd.requires_grad_(), ids_S, T, 3).logprobs_S.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "above 0, got 0.0"),
        ({"ids_S": torch.full((S,), V)}, "scored ids range from 50 to 50, expected 0 to 49"),
        ({"ids_S": torch.zeros(S + 1, dtype=torch.int64)}, "one id for each of 23 hidden states"),
        ({"support": torch.full((S, 2), -1)}, "the support range from -1"),
        ({"support": torch.zeros(S + 1, 2, dtype=torch.int64)}, r"expected a support of shape \[23, K\]"),
        ({"support": V + 1}, "1 to 50 tokens, got 51"),
        ({"support": 0}, "1 to 50 tokens, got 0"),
        ({"support": "full"}, "the hidden states and the head"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    head, hidden_Sd, ids_S = question()
    given = {"hidden_Sd": hidden_Sd, "ids_S": ids_S, "temperature": T, **change}
    with pytest.raises(ValueError, match=message):
        score_hidden(head, **given)  # type: ignore[arg-type]
