"""The rows of a block: shortcuts against what they stand for."""

from __future__ import annotations

import pytest
import torch

from limbeck.objectives.logits import TOP_GROUP, dot, log_softmax_, top


@pytest.mark.parametrize("vocabulary", [5, 20 * TOP_GROUP, 20 * TOP_GROUP + 7])
@pytest.mark.parametrize("k", [1, 5])
def test_top_is_topk(vocabulary: int, k: int) -> None:
    x_CV = torch.randn(4, vocabulary + 3, generator=torch.Generator().manual_seed(0))[:, :vocabulary]
    x_CV[0] = torch.arange(vocabulary)  # all in the last group, or in what is left over
    x_CV[1] = -torch.arange(vocabulary)  # all in the first
    values_CK, ids_CK = top(x_CV, k)
    expected_CK = x_CV.topk(k, dim=1).values
    assert torch.equal(values_CK.sort(dim=1, descending=True).values, expected_CK)
    assert torch.equal(x_CV.gather(1, ids_CK), values_CK)
    assert all(len(set(row.tolist())) == k for row in ids_CK)


def test_log_softmax_overwrites_with_torchs() -> None:
    x_CV = torch.randn(6, 1000, dtype=torch.float64) * 30
    expected_CV = torch.log_softmax(x_CV, dim=1)
    logp_CV, p_CV = log_softmax_(x_CV)
    assert logp_CV.data_ptr() == x_CV.data_ptr()
    torch.testing.assert_close(logp_CV, expected_CV)
    torch.testing.assert_close(p_CV, expected_CV.exp())


def test_dot_is_exact_over_a_large_vocabulary() -> None:
    a_CV, b_CV = (torch.rand(2, 150_000, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    exact_C = (a_CV.double() * b_CV.double()).sum(dim=1)
    torch.testing.assert_close(dot(a_CV, b_CV).double(), exact_C, rtol=3e-7, atol=0)
