"""Estimators that need both whole distributions, at some of the tokens.

Shape legend: M tokens, V vocabulary, K tokens of a support.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.audit.dump import Reals, Row
from limbeck.audit.losses import Tokens
from limbeck.audit.recompute import states_of

if TYPE_CHECKING:
    from limbeck.models.causal_lm import CausalLM

SIZES = (1, 2, 3, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100, 128, 256)
MOST = 4000  # tokens that are computed
CHUNK = 2**21  # logits at a time


def dense_estimators(
    student: CausalLM, teacher: CausalLM, rows: Sequence[Row], tokens: Tokens, betas: tuple[float, float]
) -> Mapping[str, Reals]:
    """[M] of each, NaN at tokens beyond `MOST`. `betas` are 1/T of each side, as it was found to be."""
    import torch

    wanted = np.unique(tokens.row)
    share = min(1.0, MOST / max(1, len(tokens.row)))
    chosen = wanted[np.linspace(0, len(wanted) - 1, max(1, round(share * len(wanted)))).astype(int)]
    found: dict[str, Reals] = {}
    for begin in range(0, len(chosen), 32):
        part = np.unique(chosen[begin : begin + 32])
        sequences = [rows[int(index)].token_ids for index in part]
        states = [states_of(lm, sequences) for lm in (student, teacher)]
        for offset, index in enumerate(part):
            at = np.flatnonzero(tokens.row == index)
            places = torch.from_numpy(tokens.place[at] - 1)
            shared = min(student.head().vocabulary, teacher.head().vocabulary)
            step = max(1, CHUNK // shared)
            for start in range(0, len(at), step):
                cut = slice(start, start + step)
                logs = [
                    torch.log_softmax(
                        lm.head().detach().logits(hidden[offset][places[cut]])[:, :shared].float()
                        * lm.natural_temperature
                        * (beta * rows[index].scale),
                        dim=1,
                    )
                    for lm, hidden, beta in zip((student, teacher), states, betas, strict=True)
                ]
                for name, values in _estimators(*logs).items():
                    column = found.setdefault(name, np.full(len(tokens.row), np.nan))
                    column[at[cut]] = values.double().numpy()
    return found


def _estimators(logp_MV: Any, logq_MV: Any) -> dict[str, Any]:
    """[M] of each: divergences over everything, and within either side's top K, as they are and renormalised."""
    p, q = logp_MV.exp(), logq_MV.exp()
    term = p * (logp_MV - logq_MV)
    results = {"full reverse KL": term.sum(dim=1), "full forward KL": (q * (logq_MV - logp_MV)).sum(dim=1)}
    vocabulary = logp_MV.shape[1]
    for side, values in (("student's", logp_MV), ("teacher's", logq_MV)):
        order = values.topk(min(vocabulary, max(SIZES)), dim=1).indices
        for size in SIZES:
            if size >= vocabulary:
                continue
            ids = order[:, :size]
            results[f"partial KL in the {side} top {size}"] = term.gather(1, ids).sum(dim=1)
            if size == 1:
                continue  # it is 0
            inside = [v.gather(1, ids).log_softmax(dim=1) for v in (logp_MV, logq_MV)]
            results[f"renormalised KL in the {side} top {size}"] = (inside[0].exp() * (inside[0] - inside[1])).sum(
                dim=1
            )
            results[f"renormalised forward KL in the {side} top {size}"] = (
                inside[1].exp() * (inside[1] - inside[0])
            ).sum(dim=1)
    return results
