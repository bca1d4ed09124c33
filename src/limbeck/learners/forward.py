"""What a student computes of a micro-batch: hidden states where tokens are predicted, and what follows from them.

Every rank of several passes as often, for their weights are gathered together: one that has no micro-batch left passes
a single token, and leaves what comes of it out.

Shape legend: N tokens of a micro-batch, d hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.learners.batch import Batch, MicroBatch
from limbeck.learners.tracing import trace_micro_batch
from limbeck.models.causal_lm import CausalLM, precision
from limbeck.objectives import Loss, Measured, distillation_loss
from limbeck.reports import Trace


class Forward:
    """One pass through `lm`, and `objective` on its hidden states, in chunks of `chunk_bytes`."""

    def __init__(self, lm: CausalLM, objective: Loss, chunk_bytes: int, autocast: torch.dtype | None) -> None:
        self.lm, self.objective, self.chunk_bytes, self.autocast = lm, objective, chunk_bytes, autocast

    def loss(self, batch: Batch, micro: MicroBatch | None) -> tuple[Tensor, Measured | None]:
        """The loss of a micro-batch, and what was measured. Without one: 0, which pulls every weight by nothing."""
        if micro is not None:
            return self._loss(batch, micro, self._hidden(micro))
        zero = torch.zeros(1, dtype=torch.int64, device=self.lm.device)
        with precision(self.lm, self.autocast):
            hidden_Nd = self.lm.states(zero[None], zero[None], zero)
        head = self.lm.head()
        parts = [hidden_Nd, head.weight_Vd, *([] if head.bias_V is None else [head.bias_V])]
        return torch.stack([part.sum() * 0 for part in parts]).sum(), None

    def traces(self, batch: Batch, micro: MicroBatch | None, top: int) -> dict[int, Trace]:
        """By place in the step."""
        if micro is None:
            self.loss(batch, micro)
            return {}
        hidden_Nd = self._hidden(micro)
        measured = self._loss(batch, micro, hidden_Nd)[1]
        own_top = self.objective.support != "student_top"
        traced = trace_micro_batch(hidden_Nd, self.lm.head(), micro, measured, batch.temperature, top, own_top)
        return dict(zip(micro.members, traced, strict=True))

    def _hidden(self, micro: MicroBatch) -> Tensor:
        """[N, d] at the positions that predict the trained tokens."""
        layout = micro.layout
        with precision(self.lm, self.autocast):
            return self.lm.states(layout.tokens_BL, layout.positions_BL, layout.predict_N, layout.tree)

    def _loss(self, batch: Batch, micro: MicroBatch, hidden_Nd: Tensor) -> tuple[Tensor, Measured]:
        return distillation_loss(
            self.objective,
            batch.temperature,
            hidden_Nd,
            self.lm.head(),
            micro.tokens,
            micro.teacher,
            batch.global_tokens,
            micro.reference,
            self.chunk_bytes,
        )
