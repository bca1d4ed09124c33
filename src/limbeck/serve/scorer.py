"""From questions to results: one forward pass over a batch, logits chunk by chunk, at each question's temperature.

    scorer = Scorer(lm)
    results = scorer.score([Asked(question, temperature=0.7), ...])

Log-probs are computed in float32 at the response positions alone; a `[tokens, vocabulary]` tensor is never
stored whole.

Shape legend: B rows, L row length, n scored positions of a question, m = n + 1, C positions of a chunk, V vocabulary,
K top tokens, d hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from limbeck.models.causal_lm import CausalLM
from limbeck.models.layout import plan
from limbeck.wire.binary import Result
from limbeck.wire.score import Question


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and the temperature it is to be scored at."""

    question: Question
    temperature: float
    logprobs: bool = True  # False: hidden states alone, where the question wants them


class Scorer:
    """A frozen model. `budget` bounds the tokens of a forward pass, `chunk_mb` the logits alive at once.

    With `alone` every sequence is computed by itself, so an answer does not depend on what else was
    asked: a little slower, and the same to the last bit every time.
    """

    def __init__(self, lm: CausalLM, budget: int = 8192, chunk_mb: int = 48, alone: bool = False) -> None:
        self.lm, self.budget, self.chunk_mb, self.alone = lm, budget, chunk_mb, alone
        lm.model.eval().requires_grad_(False)
        self.head = lm.head()

    def score(self, asked: Sequence[Asked]) -> list[Result]:
        """A result for each question, in order."""
        results: list[Result | None] = [None] * len(asked)
        lengths = [len(item.question.token_ids) for item in asked]
        parts = [[i] for i in range(len(asked))] if self.alone else plan(lengths, self.budget, "padded")
        with torch.inference_mode():
            for part in parts:
                hidden_BLd = self._forward([asked[i].question.token_ids for i in part])
                for row, index in enumerate(part):
                    start, end = asked[index].question.start, lengths[index]
                    results[index] = self._result(asked[index], hidden_BLd[row, start - 1 : end])
        done = [result for result in results if result is not None]
        assert len(done) == len(asked)
        return done

    def _forward(self, rows: Sequence[np.ndarray]) -> Tensor:
        """Rows are filled to the right: under causal attention what comes after cannot reach a token."""
        width = max(len(row) for row in rows)
        tokens_BL = torch.zeros(len(rows), width, dtype=torch.int64)
        for number, row in enumerate(rows):
            tokens_BL[number, : len(row)] = torch.from_numpy(row)
        device = self.lm.device
        positions_BL = torch.arange(width, device=device).expand(len(rows), -1)
        return self.lm.hidden(tokens_BL.to(device), positions_BL)

    def _result(self, item: Asked, hidden_md: Tensor) -> Result:
        """`hidden_md` [n + 1, d] begins before the first scored position and ends at the last token."""
        question = item.question
        hidden = hidden_md.float().cpu().numpy() if question.hidden else None
        if not item.logprobs:
            return Result(None, hidden=hidden)
        hidden_nd = hidden_md[:-1]
        sampled_n = torch.from_numpy(question.scored_ids.copy()).to(hidden_nd.device)
        rows = max(1, self.chunk_mb * 2**20 // (4 * self.head.vocabulary))
        listed_J = torch.tensor(question.listed, dtype=torch.int64, device=hidden_nd.device)
        of_sampled, ids, values, listed = [], [], [], []
        for start in range(0, len(sampled_n), rows):
            c = slice(start, start + rows)
            logp_CV = torch.log_softmax(self.head.logits(hidden_nd[c]) / item.temperature, dim=-1)
            of_sampled.append(logp_CV.gather(1, sampled_n[c, None])[:, 0])
            top = logp_CV.topk(question.top_k, dim=1)
            ids.append(top.indices)
            values.append(top.values)
            listed.append(logp_CV[:, listed_J])
        if not of_sampled:
            empty = np.zeros((0, question.top_k), np.float32)
            none = np.zeros((0, len(question.listed)), np.float32)
            return Result(np.zeros(0, np.float32), empty.astype(np.int64), empty, hidden, none)
        return Result(
            torch.cat(of_sampled).float().cpu().numpy(),
            torch.cat(ids).cpu().numpy(),
            torch.cat(values).float().cpu().numpy(),
            hidden,
            torch.cat(listed).float().cpu().numpy(),
        )
