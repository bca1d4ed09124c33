"""Temperature: log q_T(a) - log q_T(b) = (log q_1(a) - log q_1(b)) / T, for all tokens of all positions that are known.

All of them and not two alone: of a mixture of models the likely tokens may be one model's, and only those between show
that it was mixed after dividing by T.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from limbeck.contract.answers import AT_T, Answer, Doubles, refusal
from limbeck.records import ProbeResult

TOLERANCE = 1e-3  # nats, beside 1% of the ratio itself
SMALLEST = 0.05  # nats; below it two tokens say nothing about a temperature


@dataclass(frozen=True, slots=True)
class Gaps:
    """Of one position: how far tokens are from the most likely one at temperature 1, and at T."""

    at_one: Doubles
    at_t: Doubles


def gaps(at_one: Doubles, at_t: Doubles) -> Gaps:
    """Of the log-probs of the same tokens at one position."""
    high = int(at_one.argmax())
    return Gaps(at_one[high] - at_one, at_t[high] - at_t)


def gaps_of(pairs: Iterable[tuple[Answer, Answer]]) -> list[Gaps]:
    """Of the tokens that both answers to a text list or score, at each position."""
    found = []
    for at_one, at_t in pairs:
        assert at_one.top_SK is not None
        assert at_one.top_ids_SK is not None
        if at_t.top_SK is None or at_t.top_ids_SK is None:  # the text's own tokens against the most likely ones: none
            continue
        same_SKK = at_one.top_ids_SK[:, :, None] == at_t.top_ids_SK[:, None, :]
        for row, same_KK in enumerate(same_SKK):
            ours, theirs = np.nonzero(same_KK)
            one = np.append(at_one.top_SK[row][ours], at_one.sampled_S[row])
            at = np.append(at_t.top_SK[row][theirs], at_t.sampled_S[row])
            if len(ours):
                found.append(gaps(one, at))
    return found


def check_ratios(name: str, positions: Sequence[Gaps], temperature: float, noise: float = 0.0) -> ProbeResult:
    """Raises `ContractError` where a gap at T is not the one at 1, divided by T."""
    one = np.concatenate([position.at_one for position in positions])
    at_t = np.concatenate([position.at_t for position in positions])
    largest = float(one.max(initial=0.0))
    if not largest > SMALLEST:
        raise refusal(
            "temperature",
            f"teacher {name}: {len(one)} tokens have the same score to {largest:.3g} nats, so nothing can be said "
            "about its temperature.",
            "Is it an untrained model?",
            f"{largest:.3g} nats between tokens",
            f"more than {SMALLEST}",
        )
    # Of each position by itself: a wide gap elsewhere excuses nothing here.
    widths = np.concatenate([np.full(len(p.at_one), p.at_one.max(initial=0.0)) for p in positions])
    tolerance = TOLERANCE + 0.01 * widths / temperature + 4 * noise
    excess = np.abs(at_t - one / temperature) - tolerance
    worst = int(excess.argmax())
    fits = excess[worst] <= 0
    if fits:
        worst = int(one.argmax())  # the gap that says most is the one to report
    ratio_one, ratio_t = one[worst], at_t[worst]
    expected = ratio_one / temperature
    if not fits:
        raise refusal(
            "temperature",
            f"teacher {name} does not score at temperature {temperature}: two tokens are {ratio_t:.4f} nats apart, "
            f"expected {ratio_one:.4f} / {temperature} = {expected:.4f}. Training would aim at logits that are wrong "
            "by this factor.",
            AT_T,
            f"ratio {ratio_t:.4f} nats at T = {temperature}",
            f"{expected:.4f}",
        )
    return ProbeResult("temperature", f"ratio {ratio_t:.4f} nats at T = {temperature}", f"{expected:.4f}")
