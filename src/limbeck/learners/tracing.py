"""Per-token numbers of a few recorded samples: what the page shows when a token is looked at.

The same quantities as `objectives.Measured`, computed plainly, and the most likely tokens of both
sides. Samples of no tokens get empty traces only where they share a batch; the recorder leaves them out.

Shape legend: N tokens of a micro-batch, C of one chunk, V vocabulary, d hidden width, K kept tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from limbeck.learners.batch import MicroBatch
from limbeck.models.head import Head
from limbeck.objectives import Dense, TopK
from limbeck.records import Floats, Top, Trace

CHUNK = 256  # tokens whose logits are alive at once


def trace_micro_batch(hidden_Nd: Tensor, head: Head, micro: MicroBatch, temperature: float, top: int) -> list[Trace]:
    """One `Trace` for each member of the micro-batch, in its order."""
    columns = _Columns()
    with torch.autocast(hidden_Nd.device.type, enabled=False):
        for start in range(0, len(hidden_Nd), CHUNK):
            _trace_chunk(columns, slice(start, start + CHUNK), hidden_Nd, head, micro, temperature, top)
    sequence = micro.tokens.sequence_N.cpu().numpy()
    return [columns.cut(sequence == index) for index in range(len(micro.members))]


@dataclass
class _Columns:
    """Chunks of each column by name, [C] or [C, K]."""

    chunks: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(self, name: str, values: Tensor) -> None:
        kind = np.int64 if name.endswith("ids") else np.float32
        self.chunks.setdefault(name, []).append(values.cpu().numpy().astype(kind))

    def cut(self, rows: np.ndarray) -> Trace:
        """The rows of one sample."""
        whole = {name: np.concatenate(parts)[rows] for name, parts in self.chunks.items()}

        def top_of(side: str) -> Top | None:
            return Top(whole[f"{side}/ids"], whole[f"{side}/logprobs"]) if f"{side}/ids" in whole else None

        def optional(name: str) -> Floats | None:
            return whole.get(name)

        student = top_of("student")
        assert student is not None
        return Trace(
            student_logprobs=whole["student"],
            teacher_logprobs=whole["teacher"],
            student_entropy=whole["student_entropy"],
            student_top=student,
            teacher_entropy=optional("teacher_entropy"),
            reverse_kl=optional("reverse_kl"),
            teacher_top=top_of("teacher"),
        )


def _trace_chunk(
    columns: _Columns, c: slice, hidden_Nd: Tensor, head: Head, micro: MicroBatch, temperature: float, top: int
) -> None:
    sampled_C1 = micro.tokens.sampled_N[c, None]
    logp_CV = _log_softmax(head, hidden_Nd[c], temperature)
    columns.add("student", logp_CV.gather(1, sampled_C1)[:, 0])
    columns.add("student_entropy", -(logp_CV.exp() * logp_CV).sum(dim=1))
    _add_top(columns, "student", logp_CV, top)
    target = micro.teacher
    if isinstance(target, Dense):
        logq_CV = _log_softmax(target.head, target.hidden_Nd[c], temperature)
        columns.add("teacher", logq_CV.gather(1, sampled_C1)[:, 0])
        columns.add("teacher_entropy", -(logq_CV.exp() * logq_CV).sum(dim=1))
        columns.add("reverse_kl", (logp_CV.exp() * (logp_CV - logq_CV)).sum(dim=1))
        _add_top(columns, "teacher", logq_CV, top)
        return
    columns.add("teacher", target.logprobs_N[c])
    if isinstance(target, TopK):
        logprobs_CK, order_CK = target.logprobs_NK[c].topk(min(top, target.ids_NK.shape[1]), dim=1)
        columns.add("teacher/ids", target.ids_NK[c].gather(1, order_CK))
        columns.add("teacher/logprobs", logprobs_CK)


def _add_top(columns: _Columns, side: str, log_CV: Tensor, top: int) -> None:
    logprobs_CK, ids_CK = log_CV.topk(min(top, log_CV.shape[1]), dim=1)
    columns.add(f"{side}/ids", ids_CK)
    columns.add(f"{side}/logprobs", logprobs_CK)


def _log_softmax(head: Head, hidden_Cd: Tensor, temperature: float) -> Tensor:
    return torch.log_softmax(head.logits(hidden_Cd) / temperature, dim=-1)
