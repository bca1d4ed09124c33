"""Both sides computed again: at each position, what every token's log-prob would be at any temperature.

Of each state two functions of b = 1/T are kept on a grid: lse(b) = log sum_v exp(b z_v), and its derivative, which is
the mean logit. Then log p of a token with logit z is b z - lse(b) at any T, by Hermite interpolation, and the entropy
is lse(b) - b lse'(b). A server gives only its scores at some temperatures: there z = 0 and -lse(b) is the score.

Shape legend: L tokens of a row, N positions of all rows, G temperatures, V vocabulary, d hidden width.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.audit.dump import Reals, Row
from limbeck.errors import DataError
from limbeck.records import Failure, Ints, ScoreRequest

if TYPE_CHECKING:
    from limbeck.models.causal_lm import CausalLM

COLDEST, HOTTEST, GRID = 0.125, 8.0, 33
WORK = 5e10  # exponentials of a whole recomputation: a minute or two on two cores
FEWEST, MOST = 4096, 200_000  # positions
CHUNK = 2**22  # logits at a time
NOISE_ROWS = 16


def grid_of(temperature: float) -> Reals:
    """[G] 1/T in rising order, with `temperature` and 1 among them."""
    temperatures = np.geomspace(COLDEST, HOTTEST, GRID)
    return np.unique(1.0 / np.concatenate([temperatures, [temperature, 1.0]]))


def most_positions(vocabulary: int) -> int:
    """How many positions are computed for a vocabulary of this size."""
    return int(np.clip(WORK / (vocabulary * (GRID + 2)), FEWEST, MOST))


@dataclass
class Curves:
    """What one side gives each token. Position n is a state; `first` says where a row's states begin.

    State k of a row has seen its tokens 0 to k and predicts token k + 1; the last one predicts what came after.
    """

    betas: Reals  # [G]
    lse_NG: Reals
    mean_NG: Reals  # its derivative
    first: Ints  # [rows] the number of each row's state 0; -1 for a row that was not computed
    z_next: Reals  # [N] logit of token k + 1; NaN for the last state
    z_own: Reals  # [N] of token k, which the state has already seen
    z_skip: Reals  # [N] of token k + 2
    stop_N: Reals  # [N] p of any stop token at the rollout temperature
    pad_N: Reals  # [N] p of the padding token
    spread_N: Reals  # [N] standard deviation of log p
    served: bool = False  # scores alone: no entropy, no other token

    def at(self, places: Ints, beta: float) -> tuple[Reals, Reals]:
        """lse and its derivative of these states at one 1/T. NaN for a place of -1."""
        betas = self.betas
        if len(betas) == 1:
            lse, slope = self.lse_NG[places, 0], self.mean_NG[places, 0]
        else:
            g = int(np.clip(np.searchsorted(betas, beta, side="right") - 1, 0, len(betas) - 2))
            lse, slope = _hermite(
                beta, betas[g], betas[g + 1], self.lse_NG[places, g], self.lse_NG[places, g + 1],
                self.mean_NG[places, g], self.mean_NG[places, g + 1],
            )  # fmt: skip
        return np.where(places < 0, np.nan, lse), np.where(places < 0, np.nan, slope)

    def logprob(self, places: Ints, beta: float) -> Reals:
        """log p of the next token at 1/T = `beta`."""
        return beta * self.z_next[places] - self.at(places, beta)[0]

    def entropy(self, places: Ints, beta: float) -> Reals:
        lse, mean = self.at(places, beta)
        return lse - beta * mean


def _hermite(x: float, x0: float, x1: float, y0: Reals, y1: Reals, d0: Reals, d1: Reals) -> tuple[Reals, Reals]:
    """A cubic with these values and slopes at both ends, and its slope, at x."""
    h = x1 - x0
    t = (x - x0) / h
    value = (
        (2 * t**3 - 3 * t**2 + 1) * y0
        + (t**3 - 2 * t**2 + t) * h * d0
        + (3 * t**2 - 2 * t**3) * y1
        + (t**3 - t**2) * h * d1
    )
    slope = ((6 * t**2 - 6 * t) * (y0 - y1)) / h + (3 * t**2 - 4 * t + 1) * d0 + (3 * t**2 - 2 * t) * d1
    return value, slope


def states_of(lm: CausalLM, sequences: Sequence[Ints], low_precision: bool = False) -> list[Any]:
    """[tokens, d] for each: the state after every token. Raises `DataError` for ids that the model does not have."""
    import torch

    from limbeck.learners.policy import LocalPolicy

    policy = LocalPolicy(lm, autocast=torch.bfloat16 if low_precision else None)
    requests = []
    for index, ids in enumerate(sequences):
        extended = np.append(ids, ids[-1]) if lm.context is None or len(ids) < lm.context else ids
        scored = np.arange(len(extended)) > 0
        requests.append(ScoreRequest(f"row {index}", extended, scored, 1.0, "full"))
    answers = asyncio.run(policy.score(requests))
    for answer in answers:
        if isinstance(answer, Failure):
            raise DataError(f"{answer.message} Is {lm.name} the model of this dump, with its own tokenizer?")
    return [answer.states.fetch() for answer in answers]  # type: ignore[union-attr]


def bfloat16_noise(lm: CausalLM, rows: Sequence[Row], temperature: float) -> float:
    """Nats a token, on average, by which half precision changes this model's scores."""
    import torch

    some = [rows[i * len(rows) // NOISE_ROWS] for i in range(min(NOISE_ROWS, len(rows)))]
    sequences = [row.token_ids for row in some]
    off = []
    for row, full, half in zip(
        some, states_of(lm, sequences), states_of(lm, sequences, low_precision=True), strict=True
    ):
        places = torch.from_numpy(np.flatnonzero(row.trained))
        ids = torch.from_numpy(row.token_ids)[places][:, None].to(full.device)
        logits = [lm.head().detach().logits(hidden[places - 1].float()) for hidden in (full, half)]
        logits[1] = logits[1].bfloat16().float()
        scores = [torch.log_softmax(values * (row.scale / temperature), dim=1).gather(1, ids) for values in logits]
        off.append((scores[0] - scores[1]).abs().flatten())
    values = torch.cat(off)
    return float(values.mean()) if len(values) else 0.0


def local_curves(lm: CausalLM, rows: Sequence[Row], temperature: float, pad: int | None) -> Curves:
    """The curves of a model in a folder."""
    import torch

    head, natural = lm.head().detach(), lm.natural_temperature
    betas = torch.from_numpy(grid_of(temperature)).float()
    parts: list[dict[str, Any]] = []
    first = np.full(len(rows), -1, dtype=np.int64)
    count = 0
    stops = torch.tensor(sorted(lm.stop_ids), dtype=torch.long)
    chunk = max(1, CHUNK // head.vocabulary)
    for begin in range(0, len(rows), 64):
        batch = rows[begin : begin + 64]
        for offset, (row, hidden) in enumerate(
            zip(batch, states_of(lm, [row.token_ids for row in batch]), strict=True)
        ):
            first[begin + offset] = count
            length = len(hidden)
            count += length
            targets = _targets(row.token_ids, length)
            with torch.inference_mode():
                for start in range(0, length, chunk):
                    part = slice(start, start + chunk)
                    logits = head.logits(hidden[part]).mul(natural * row.scale)
                    parts.append(_numbers(logits, betas, targets[:, part], stops, pad, temperature))
    joined: dict[str, Any] = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return Curves(betas.double().numpy(), first=first, **joined)


def _targets(ids: Ints, length: int) -> Ints:
    """[3, length] token k + 1, k and k + 2 of each state; -1 beyond the end."""
    padded = np.concatenate([ids, [-1, -1]])
    places = np.arange(length)
    return np.stack([padded[places + 1], padded[places], padded[places + 2]])


def _numbers(logits: Any, betas: Any, targets: Ints, stops: Any, pad: int | None, temperature: float) -> dict[str, Any]:
    import torch

    top = logits.amax(dim=1, keepdim=True)
    shifted = logits - top  # no exponent overflows
    lse, mean = [], []
    for beta in betas.tolist():
        weights = torch.exp(shifted * beta)
        total = weights.sum(dim=1)
        lse.append(torch.log(total) + beta * top[:, 0])
        mean.append((weights * shifted).sum(dim=1) / total + top[:, 0])
    logp = torch.log_softmax(logits / temperature, dim=1)
    p = logp.exp()
    entropy = -(p * logp).sum(dim=1)
    spread = ((p * logp.square()).sum(dim=1) - entropy.square()).clamp_min(0).sqrt()
    wanted = torch.from_numpy(targets).to(logits.device)
    found = [torch.where(ids >= 0, logits.gather(1, ids.clamp_min(0)[:, None])[:, 0], torch.nan) for ids in wanted]

    def array(tensor: Any) -> Reals:
        return np.asarray(tensor.double().cpu().numpy())

    known = stops[stops < logits.shape[1]].to(logits.device)
    return {
        "lse_NG": array(torch.stack(lse, dim=1)),
        "mean_NG": array(torch.stack(mean, dim=1)),
        "z_next": array(found[0]), "z_own": array(found[1]), "z_skip": array(found[2]),
        "stop_N": array(p[:, known].sum(dim=1)),
        "pad_N": array(p[:, pad] if pad is not None and pad < logits.shape[1] else torch.zeros(len(p))),
        "spread_N": array(spread),
    }  # fmt: skip
