"""Drawing tokens: against an exact reference, against naive definitions, and by counting.

Shape legend: B rows, V vocabulary.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from limbeck.models.sampling import BLOCK, draw, inverse_cdf, truncate, uniforms
from limbeck.records import Sampling

SIZES = (1, 2, 7, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 17)
LAST = math.nextafter(1.0, 0.0)  # the largest number a uniform number can be


def sampling(temperature: float = 1.0, **more: float) -> Sampling:
    return Sampling(temperature, max_tokens=1, **more)  # type: ignore[arg-type]


def distribution(seed: int, vocabulary: int, sharpness: float, zeros: float = 0.0) -> Tensor:
    """[V] float64 probabilities, a share of them exactly 0."""
    generator = torch.Generator().manual_seed(seed)
    p_V = torch.softmax(sharpness * torch.randn(vocabulary, generator=generator, dtype=torch.float64), dim=-1)
    gone_V = torch.rand(vocabulary, generator=generator) < zeros
    gone_V[torch.randint(vocabulary, (1,), generator=generator)] = False
    p_V = p_V.masked_fill(gone_V, 0.0)
    return p_V / p_V.sum()


# The inverse of the cumulative distribution


@given(
    vocabulary=st.sampled_from(SIZES) | st.integers(1, 1500),
    sharpness=st.floats(0, 12),
    zeros=st.sampled_from([0.0, 0.5, 0.95, 0.999]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None)
def test_every_u_lands_in_its_tokens_interval(
    vocabulary: int, sharpness: float, zeros: float, dtype: torch.dtype, seed: int
) -> None:
    """Token v is drawn for u in [cdf(v - 1), cdf(v)), and one of probability 0 never."""
    p_V = distribution(seed, vocabulary, sharpness, zeros).to(dtype)
    cdf_V = (p_V.double().cumsum(0) / p_V.double().sum()).numpy()
    edges = np.concatenate([[0.0], cdf_V])
    sweep = np.concatenate([np.linspace(0, LAST, 257), edges, np.nextafter(edges, 0), np.nextafter(edges, 1)])
    sweep = sweep.clip(0, LAST)
    drawn = inverse_cdf(p_V.expand(len(sweep), -1), torch.from_numpy(sweep)).numpy()
    rounding = 1e-6 if dtype is torch.float32 else 1e-12
    assert (p_V.numpy()[drawn] > 0).all()
    assert (edges[drawn] - rounding <= sweep).all()
    assert (sweep <= edges[drawn + 1] + rounding).all()


@pytest.mark.parametrize("vocabulary", SIZES)
def test_a_sweep_of_u_gives_every_token_its_share(vocabulary: int) -> None:
    """A grid of u is spread over the tokens as their probabilities are, to one point of the grid."""
    p_V = distribution(3, vocabulary, 2.0, zeros=0.2)
    count = 20_000
    grid = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    drawn = inverse_cdf(p_V.expand(count, -1), grid)
    shares = torch.bincount(drawn, minlength=vocabulary).double()
    assert (shares - count * p_V).abs().max() <= 1 + 1e-6
    assert (drawn.diff() >= 0).all()


@pytest.mark.parametrize("vocabulary", SIZES)
@pytest.mark.parametrize("u", [0.0, 1e-300, 0.3, LAST])
def test_the_only_possible_token_is_drawn(vocabulary: int, u: float) -> None:
    for token in {0, vocabulary // 2, vocabulary - 1}:
        p_1V = torch.zeros(1, vocabulary)
        p_1V[0, token] = 1.0
        assert inverse_cdf(p_1V, torch.tensor([u], dtype=torch.float64)).item() == token


def test_rows_are_drawn_independently() -> None:
    p_BV = torch.stack([distribution(seed, 700, 3.0) for seed in range(20)])
    u_B = torch.rand(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = inverse_cdf(p_BV, u_B)
    assert together.tolist() == [inverse_cdf(p_BV[i : i + 1], u_B[i : i + 1]).item() for i in range(20)]


# The uniform numbers


def test_uniforms_are_pinned() -> None:
    """A change here changes every run: the same seed would no longer give the same samples."""
    golden = [0.9486930905436372, 0.1479542308027929, 0.23104004516981513]
    assert uniforms(0, "arithmetic-000017", 0, 3).tolist() == golden


def test_uniforms_differ_between_seeds_prompts_and_samples() -> None:
    named = [(seed, name, sample) for seed in (0, 1, 12) for name in ("p", "p1", "1", "") for sample in (0, 1, 11)]
    rolls = {tuple(uniforms(*which, 4)) for which in named}
    assert len(rolls) == len(named)


def test_uniforms_of_a_shorter_response_begin_those_of_a_longer_one() -> None:
    np.testing.assert_array_equal(uniforms(5, "p", 2, 10), uniforms(5, "p", 2, 100)[:10])


def test_uniforms_are_uniform_over_tokens_samples_and_prompts() -> None:
    rolls = np.stack([uniforms(seed, f"p{p}", k, 8) for seed in range(4) for p in range(25) for k in range(10)])
    assert rolls.min() >= 0
    assert rolls.max() < 1
    for values in (rolls.ravel(), rolls[:, 0], rolls[:, 7]):
        counts = np.histogram(values, bins=20, range=(0, 1))[0]
        assert chi_square(counts, np.full(20, len(values) / 20)) < 3.5
    correlation = np.corrcoef(rolls.T) - np.eye(8)
    assert np.abs(correlation).max() < 4.5 / math.sqrt(len(rolls))


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """Standard deviations by which Pearson's statistic exceeds its mean."""
    freedom = len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom))


# Draws and their log-probs


def logits(seed: int, rows: int, vocabulary: int) -> Tensor:
    return 2.0 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.5])
def test_many_draws_follow_the_distribution_at_the_temperature(temperature: float) -> None:
    count, vocabulary = 10_000, 300
    logits_V = logits(1, 1, vocabulary)[0]
    uniform_B = torch.from_numpy(np.random.default_rng(7).random(count))
    drawn, logprobs = draw(logits_V.expand(count, -1), sampling(temperature), uniform_B)
    p_V = torch.softmax(logits_V.double() / temperature, dim=-1)
    assert_close(logprobs.double(), p_V[drawn].log(), atol=1e-5, rtol=0)
    counts = np.bincount(drawn.numpy(), minlength=vocabulary)
    likely = p_V.numpy() * count >= 5  # the rest in one bin
    binned = np.append(counts[likely], counts[~likely].sum())
    expected = np.append(p_V.numpy()[likely], p_V.numpy()[~likely].sum()) * count
    assert chi_square(binned, expected) < 3.5


def test_greedy_takes_the_most_likely_and_says_its_log_prob_at_the_temperature() -> None:
    logits_BV = logits(2, 6, 300)
    drawn, logprobs = draw(logits_BV, sampling(0.5, greedy=True), torch.full((6,), 0.99))
    assert drawn.tolist() == logits_BV.argmax(-1).tolist()
    assert_close(logprobs, torch.log_softmax(logits_BV / 0.5, -1).amax(-1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_give_a_log_prob_that_is_not(value: float) -> None:
    """So that the engine notices, whatever token comes out."""
    logits_BV = logits(3, 2, 300)
    logits_BV[0, 5] = value
    for cut in ({}, {"top_k": 4}, {"top_p": 0.5}, {"min_p": 0.1}, {"greedy": True}):
        _, logprobs = draw(logits_BV, sampling(**cut), torch.tensor([0.5, 0.5]))
        assert not logprobs[0].isfinite()
        assert logprobs[1].isfinite()


# Truncation

CUTS = [
    {"top_k": 1}, {"top_k": 7}, {"top_k": 300}, {"top_k": 9999}, {"top_p": 0.05}, {"top_p": 0.6}, {"top_p": 0.999},
    {"min_p": 0.02}, {"min_p": 0.5}, {"top_k": 20, "top_p": 0.7}, {"top_k": 20, "min_p": 0.1},
    {"top_p": 0.8, "min_p": 0.05}, {"top_k": 30, "top_p": 0.9, "min_p": 0.08},
]  # fmt: skip


def naive_kept(p_V: np.ndarray, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> set[int]:
    """The tokens that are kept, from the definitions: one cut after the other, renormalised between."""
    kept = sorted(range(len(p_V)), key=lambda v: -p_V[v])
    if top_k:
        kept = kept[:top_k]
    if top_p < 1:
        mass, total, nucleus = 0.0, sum(p_V[v] for v in kept), []
        for token in kept:  # the smallest set whose mass reaches top_p
            nucleus.append(token)
            mass += p_V[token] / total
            if mass >= top_p:
                break
        kept = nucleus
    return {token for token in kept if p_V[token] >= min_p * p_V[kept[0]]}


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_truncation_keeps_what_the_definitions_keep_and_renormalises(cut: dict[str, float]) -> None:
    logp_BV = torch.log_softmax(logits(4, 5, 300).double(), dim=-1)
    cut_BV = truncate(logp_BV, sampling(**cut))
    assert_close(cut_BV.exp().sum(-1), torch.ones(5, dtype=torch.float64))
    for logp_V, cut_V in zip(logp_BV, cut_BV, strict=True):
        kept = sorted(naive_kept(logp_V.exp().numpy(), **cut))  # type: ignore[arg-type]
        assert torch.nonzero(cut_V > -torch.inf)[:, 0].tolist() == kept
        assert_close(cut_V[kept], torch.log_softmax(logp_V[kept], dim=0))


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_a_truncated_draw_is_from_what_is_kept_at_the_temperature(cut: dict[str, float]) -> None:
    """The cut is made on the distribution at the temperature, and its log-prob is that of the cut one."""
    logits_V, count, temperature = logits(5, 1, 300)[0], 2000, 1.4
    uniform_B = torch.from_numpy(np.random.default_rng(8).random(count))
    drawn, logprobs = draw(logits_V.expand(count, -1), sampling(temperature, **cut), uniform_B)
    p_V = torch.softmax(logits_V.double() / temperature, dim=-1).numpy()
    kept = sorted(naive_kept(p_V, **cut))  # type: ignore[arg-type]
    assert set(drawn.tolist()) <= set(kept)
    assert_close(logprobs.double(), torch.from_numpy(np.log(p_V[drawn] / p_V[kept].sum())), atol=1e-5, rtol=0)


def test_nothing_is_cut_where_nothing_is_asked() -> None:
    logp_BV = torch.log_softmax(logits(6, 2, 50), dim=-1)
    assert_close(truncate(logp_BV, sampling()), logp_BV, atol=0, rtol=0)
