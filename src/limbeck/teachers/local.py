"""Teacher `local`: in this process, exact at any temperature and on any support.

It answers with hidden states at the scored positions, never with logits: the objective puts them
through the teacher's head chunk by chunk, together with the student's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from limbeck.models.causal_lm import CausalLM
from limbeck.models.equivalence import share_prompts, use_fused_forward
from limbeck.models.layout import Layout, lay_out, split
from limbeck.models.scoring import refusal
from limbeck.models.states import LocalStates
from limbeck.records import Failure, HiddenScores, ScoreRequest, Scores


class LocalTeacher:
    """A frozen model of this process. `budget` bounds the tokens of one forward pass."""

    def __init__(self, name: str, lm: CausalLM, budget: int = 8192) -> None:
        self.name, self.lm, self.budget, self.info = name, lm, budget, lm.info()
        lm.model.eval().requires_grad_(False)
        self.head = lm.head()
        self.fingerprint = self.head.fingerprint()
        self.heads = {self.fingerprint: self.head}
        self.unshared = share_prompts(lm)  # why each sample's prompt is computed anew, where it is
        self.layout: Layout = "padded" if self.unshared else "tree"
        use_fused_forward(lm)

    async def score(self, unit: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        """`HiddenScores` for each request, in order, or a `Failure` for one that the model has no answer to."""
        refused = [refusal(self.lm, replace(request, support="full")) for request in unit]  # states are more than any
        asked = [i for i, failure in enumerate(refused) if failure is None]
        states: dict[int, torch.Tensor] = {}
        with torch.inference_mode():
            for places in split([unit[i] for i in asked], self.budget, self.layout):
                part = [asked[i] for i in places]
                chosen = [unit[i] for i in part]
                batch = lay_out(chosen, self.layout).to(self.lm.device)
                hidden_Nd = self.lm.states(batch.tokens_BL, batch.positions_BL, batch.predict_N, batch.tree)
                counts = [int(request.scored.sum()) for request in chosen]
                states |= dict(zip(part, torch.split(hidden_Nd, counts), strict=True))
        natural = self.info.natural_temperature
        return [
            failure or HiddenScores(self.name, LocalStates(states[index]), self.fingerprint, natural)
            for index, failure in enumerate(refused)
        ]
