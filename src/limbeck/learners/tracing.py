"""Per-token numbers of a few recorded samples: what the page shows when a token is looked at.

What the loss measures anyway (`objectives.Measured`), and the most likely tokens of both sides.

Shape legend: N tokens of a micro-batch, S of one sample, d hidden width, K kept tokens.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from limbeck.learners.batch import MicroBatch
from limbeck.models.head import Head
from limbeck.models.scoring import score_hidden
from limbeck.objectives import Dense, Measured, Target, TopK
from limbeck.records import Floats, Mask
from limbeck.reports import Top, Trace


def trace_micro_batch(
    hidden_Nd: Tensor,
    head: Head,
    micro: MicroBatch,
    measured: Measured,
    temperature: float,
    top: int,
    own_top: bool = True,
) -> list[Trace]:
    """One `Trace` for each member of the micro-batch, in its order. `measured` is what the loss found of it.

    `own_top`: whether tokens that a teacher listed are its own most likely ones, and not those it was asked about.
    """
    sequence_N = micro.tokens.sequence_N.cpu().numpy()
    joined = Trace(
        student_logprobs=_floats(measured.student_logprob),
        teacher_logprobs=_floats(measured.teacher_logprob),
        student_entropy=_floats(measured.student_entropy),
        student_top=_top_of(head, hidden_Nd, micro.tokens.sampled_N, temperature, top),
        teacher_entropy=None if measured.teacher_entropy is None else _floats(measured.teacher_entropy),
        reverse_kl=None if measured.reverse_kl is None else _floats(measured.reverse_kl),
        teacher_top=_teacher_top(micro.teacher, micro.tokens.sampled_N, temperature, top, own_top),
    )
    return [_cut(joined, sequence_N == index) for index in range(len(micro.members))]


def _cut(joined: Trace, rows_N: Mask) -> Trace:
    """The rows of one sample."""

    def rows(values_N: Floats | None) -> Floats | None:
        return None if values_N is None else values_N[rows_N]

    return Trace(
        student_logprobs=joined.student_logprobs[rows_N],
        teacher_logprobs=joined.teacher_logprobs[rows_N],
        student_entropy=joined.student_entropy[rows_N],
        student_top=Top(joined.student_top.ids[rows_N], joined.student_top.logprobs[rows_N]),
        teacher_entropy=rows(joined.teacher_entropy),
        reverse_kl=rows(joined.reverse_kl),
        teacher_top=joined.teacher_top and Top(joined.teacher_top.ids[rows_N], joined.teacher_top.logprobs[rows_N]),
    )


def _teacher_top(target: Target, sampled_N: Tensor, temperature: float, top: int, own_top: bool) -> Top | None:
    """The teacher's most likely tokens, as many as it gave; None where it gave the scores of others only."""
    if isinstance(target, Dense):
        return _top_of(target.head, target.hidden_Nd, sampled_N, temperature, top)
    if isinstance(target, TopK) and own_top:
        logprobs_NK, order_NK = target.logprobs_NK.topk(min(top, target.ids_NK.shape[1]), dim=1)
        return Top(target.ids_NK.gather(1, order_NK).cpu().numpy(), _floats(logprobs_NK))
    return None


def _top_of(head: Head, hidden_Nd: Tensor, sampled_N: Tensor, temperature: float, top: int) -> Top:
    scored = score_hidden(head, hidden_Nd, sampled_N, temperature, min(top, head.vocabulary))
    assert scored.top_ids_SK is not None
    assert scored.top_logprobs_SK is not None
    return Top(scored.top_ids_SK.cpu().numpy(), _floats(scored.top_logprobs_SK))


def _floats(values: Tensor) -> Floats:
    return values.detach().cpu().numpy().astype(np.float32)
