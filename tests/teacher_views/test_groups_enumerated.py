"""What the gradient of a retokenized view is in expectation, over every response of a tiny student.

With J = E log P(y) - log Q(the teacher's tokens of y's text), the sum of the groups' log-ratios:

    discount = 1     E[fused gradient] = grad J, where one more token of the student decides how a group ends
    discount = 0     E[fused gradient] = E sum of grad D of the groups, a group one action, where none does
    otherwise        an approximation, of which the size is held here

Shape legend: P prefixes, B responses, N tokens of all of them, V the student's vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.objectives.helpers import close, finite_difference

from .enumerated import PAIRS, World, world

DECIDED = ["coarse", "fine", "crossing", "one tokenizer"]


def gradient(f: Callable[[Tensor], Tensor], z_PV: Tensor) -> Tensor:
    z_PV = z_PV.clone().requires_grad_()
    return torch.autograd.grad(f(z_PV), z_PV)[0]


def off(found: Tensor, wanted: Tensor) -> float:
    """Distance, as a share of what is wanted."""
    return float((found - wanted).norm() / wanted.norm())


def test_the_worlds_are_complete_and_j_is_what_is_sampled() -> None:
    """All probabilities sum to 1, nothing is left out, and the groups' log-ratios sum to that of the response."""
    for pair in PAIRS:
        w = world(pair)
        z_PV = w.table(0)
        assert w.logp_B(z_PV).exp().sum() == pytest.approx(1, abs=1e-12)
        assert all(view.left_out == {} for view, _, _ in w.views)
        micro = w.micro_batch(z_PV)
        total_B = torch.stack([micro.teacher.logprobs_G.sum(), w.logq_B.sum()])  # type: ignore[union-attr]
        close(total_B[0], total_B[1])
    sizes = {pair: {len(groups.sizes) for _, groups, _ in world(pair).views} for pair in PAIRS}
    assert all(len(of) > 1 for of in sizes.values())


@pytest.mark.parametrize("pair", DECIDED)
@pytest.mark.parametrize("seed", range(2))
def test_undiscounted_gradient_is_that_of_j(pair: str, seed: int) -> None:
    w = world(pair, seed)
    z_PV = w.table(seed + 10)
    wanted_PV = gradient(w.objective, z_PV)
    close(w.expected_gradient(z_PV, 1.0), wanted_PV, 1e-10)
    if seed == 0 and pair == "fine":
        free = torch.isfinite(z_PV) & (z_PV > -100)
        close(wanted_PV[free], finite_difference(w.objective, z_PV)[free], 1e-8)


def frozen_divergence(w: World, visited_PV: Tensor) -> Callable[[Tensor], Tensor]:
    """sum_s d(s) D_s of groups that are one student's token each, d the frequencies of states under a fixed policy."""
    logq: dict[tuple[int, int], float] = {}
    reached_P = torch.zeros(len(w.number), dtype=torch.float64)
    for b, (_, groups, scores) in enumerate(w.views):
        places = torch.nonzero(w.sequence_N == b)[:, 0]
        for t, place in enumerate(places.tolist()):
            of_group = scores.logprobs[groups.teacher == groups.student[t]].sum()
            logq[int(w.prefix_N[place]), int(w.sampled_N[place])] = float(of_group)
    visited_N = w.logp_B(visited_PV).exp()[w.sequence_N]
    reached_P.index_add_(0, w.prefix_N, visited_N)

    def divergence(z_PV: Tensor) -> Tensor:
        logp_PV = torch.log_softmax(z_PV, dim=-1)
        terms = [reached_P[p] * logp_PV[p, v].exp() * (logp_PV[p, v] - value) for (p, v), value in logq.items()]
        return torch.stack(terms).sum()

    return divergence


def test_gradient_at_discount_zero_is_that_of_the_groups_divergences() -> None:
    """A student whose tokens are made of the teacher's: fresh, and sampled by another policy."""
    w = world("coarse")
    z_PV, other_PV = w.table(3), w.table(4)
    close(w.expected_gradient(z_PV, 0.0), gradient(frozen_divergence(w, z_PV), z_PV), 1e-10)
    stale_PV = w.expected_gradient(z_PV, 0.0, mu_PV=other_PV)
    close(stale_PV, gradient(frozen_divergence(w, other_PV), z_PV), 1e-10)


def test_what_is_an_approximation_and_how_large_it_is() -> None:
    """Not of zero, and not of more than was measured: docs/concepts/mathematics.md has the figures."""
    for pair in DECIDED:
        w = world(pair)
        z_PV = w.table(10)
        wanted_PV = gradient(w.objective, z_PV)
        sizes = [off(w.expected_gradient(z_PV, discount), wanted_PV) for discount in (0.0, 0.5, 0.9)]
        assert sizes == sorted(sizes, reverse=True)
        assert 0.2 < sizes[0] < 0.8
        assert sizes[2] < 0.15
    w = world("long", length=4)  # three more characters may decide whether the teacher says "a" or "abab"
    z_PV = w.table(10)
    assert 1e-3 < off(w.expected_gradient(z_PV, 1.0), gradient(w.objective, z_PV)) < 0.25


def test_j_is_the_divergence_of_texts_but_for_how_they_are_split() -> None:
    """J = KL of the texts + what the teacher gives to other splits of a text - the entropy of the student's splits."""
    w = world("crossing")
    z_PV = w.table(5)
    p_B = w.logp_B(z_PV).exp()
    texts = [w.student.decode(list(y[:-1])) for y in w.responses]
    of_text = {text: [b for b, other in enumerate(texts) if other == text] for text in texts}
    prompt = list(w.view.prompts(w._rollout(0, w.responses[0], p_B[:1].numpy()).prompt))  # type: ignore[attr-defined]
    kl = others = entropy = 0.0
    for text, members in of_text.items():
        p = p_B[members].sum()
        ways = [
            [*way, 0]
            for n in range(len(text) + 1)
            for way in itertools.product(range(1, len(w.teacher)), repeat=n)
            if w.teacher.decode(list(way)) == text
        ]
        logq = [sum(w.logq([*prompt, *way], [False] * len(prompt) + [True] * len(way))) for way in ways]
        whole = torch.logsumexp(torch.tensor(logq, dtype=torch.float64), 0)
        kl += p * (p.log() - whole)
        others += p * (whole - w.logq_B[members[0]])
        entropy -= (p_B[members] * (p_B[members] / p).log()).sum()
    close(w.objective(z_PV), torch.as_tensor(kl + others - entropy), 1e-10)
    assert others > 0.01
    assert entropy > 0.01
