"""Teacher `local`: in this process, exact at any temperature and on any support.

It answers with hidden states at the response positions, never with logits: the objective puts them
through the teacher's head chunk by chunk, together with the student's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from limbeck.models.causal_lm import CausalLM
from limbeck.models.equivalence import share_prompts, use_fused_forward
from limbeck.models.layout import Layout, lay_out, split
from limbeck.records import Failure, HiddenScores, Rollout, TeacherScores


class LocalTeacher:
    """A frozen model of this process. `budget` bounds the tokens of one forward pass."""

    def __init__(self, name: str, lm: CausalLM, budget: int = 8192) -> None:
        self.name, self.lm, self.budget = name, lm, budget
        self.seconds: dict[str, float] = {}
        lm.model.eval().requires_grad_(False)
        self.head = lm.head()
        self.unshared = share_prompts(lm)  # why each sample's prompt is computed anew, where it is
        self.layout: Layout = "padded" if self.unshared else "tree"
        use_fused_forward(lm)

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores | Failure]:
        """`HiddenScores` for each rollout, in order."""
        scores: list[TeacherScores | None] = [None] * len(rollouts)
        with torch.inference_mode():
            for part in split(rollouts, self.budget, self.layout):
                chosen = [rollouts[i] for i in part]
                batch = lay_out(chosen, self.layout).to(self.lm.device)
                hidden_Nd = self.lm.states(batch.tokens_BL, batch.positions_BL, batch.predict_N, batch.tree)
                counts = [int(rollout.trained.sum()) for rollout in chosen]
                for index, hidden_Sd in zip(part, torch.split(hidden_Nd, counts), strict=True):
                    temperature = rollouts[index].sampling.temperature
                    scores[index] = HiddenScores(self.name, temperature, hidden_Sd, self.head)
        done: list[TeacherScores | Failure] = [score for score in scores if score is not None]
        assert len(done) == len(rollouts)
        return done

    async def close(self) -> None:
        """Nothing to release."""
