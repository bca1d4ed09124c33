"""Scores of groups of tokens, as the loss takes them: of a teacher that says the same text in tokens of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import ContractError
from limbeck.learners.valid_mask import apply_valid_mask
from limbeck.models.head import Head
from limbeck.models.scoring import score_hidden
from limbeck.objectives import Grouped
from limbeck.records import Groups, HiddenScores, Scored, TopKScores


def check_groups(where: str, groups: Groups, trained: int) -> None:
    """Raises `ContractError` for groups that are not of both sides' tokens, in order, each on both sides."""
    problem = ""
    if groups.student.shape != (trained,):
        problem = f"groups of {len(groups.student)} tokens for {trained} sampled ones"
    elif groups.teacher.shape != groups.teacher_ids.shape:
        problem = f"groups of {len(groups.teacher)} of the teacher's tokens, but {len(groups.teacher_ids)} ids"
    else:
        for side, of in (("student", groups.student), ("teacher", groups.teacher)):
            kept = of[of >= 0]
            if (np.diff(kept) < 0).any() or not np.array_equal(np.unique(kept), np.arange(len(groups.sizes))):
                problem = f"the {side}'s groups are not 0 to {len(groups.sizes) - 1} in order, each with a token"
    if problem:
        raise ContractError(f"{where}: {problem}. A view must put the same text on both sides of each group.")


def grouped_target(samples: Sequence[Scored], heads: Mapping[str, Head], device: torch.device) -> Grouped:
    """End to end, groups numbered through. Samples as `apply_valid_mask` leaves them."""
    totals, numbers, groups_before = [], [], 0
    for sample in samples:
        assert sample.groups is not None
        groups, count = sample.groups, len(sample.groups.sizes)
        logq = _logprobs(sample, groups, heads, device)
        group = torch.from_numpy(groups.teacher).to(device)
        totals.append(logq.new_zeros(count).index_add_(0, group, logq))
        numbers.append(torch.from_numpy(groups.student + groups_before).to(device))
        groups_before += count
    return Grouped(torch.cat(totals), torch.cat(numbers))


def _logprobs(sample: Scored, groups: Groups, heads: Mapping[str, Head], device: torch.device) -> Tensor:
    """[S'] log q of the teacher's tokens, at the rollout's temperature."""
    scores = sample.scores
    if isinstance(scores, HiddenScores):
        states_Sd = scores.states.fetch().to(device)
        ids = torch.from_numpy(groups.teacher_ids).to(device)
        return score_hidden(heads[scores.head], states_Sd, ids, sample.rollout.sampling.temperature).logprobs_S
    known = scores.logprobs_of_sampled if isinstance(scores, TopKScores) else scores.logprobs
    return torch.from_numpy(known).to(device)


def compared_bytes(samples: Sequence[Scored]) -> list[int] | None:
    """Of the text that is in groups, of each sample; None where no teacher has other tokens."""
    if all(sample.groups is None for sample in samples):
        return None
    masked = (apply_valid_mask(sample) for sample in samples)
    return [0 if sample.groups is None else int(sample.groups.sizes.sum()) for sample in masked]
