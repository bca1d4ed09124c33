"""Does each answer belong to its request? A teacher that sorts a unit by length may forget to sort its answers back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from limbeck.contract.answers import Heads, ask, refusal, rows_of
from limbeck.protocols import Teacher
from limbeck.records import ProbeResult, Support, request_of

CUTS = (1, 3, 0, 2)  # tokens that each text of the unit is shorter than the longest: in no order
NOISE = 0.05  # nats by which the others of a unit may move an answer
CLEARLY = 4  # times nearer to another request's answer


async def prove_order(
    teacher: Teacher, texts: Sequence[Sequence[int]], temperature: float, heads: Heads, support: Support
) -> ProbeResult:
    """Compare the answers to a unit of several lengths with what each of its requests gets alone.

    Raises `ContractError` where one is nearer to another request's.
    """
    longest = max(texts, key=len)
    ends = [end for cut in CUTS if (end := len(longest) - cut) >= 2]
    unit = [request_of(longest[:end], end - 1, temperature, support, id=f"order-{end}") for end in ends]
    if not unit:
        return ProbeResult("order", "prompts of one token: nothing to compare", "answers in order")
    together_R1 = rows_of(await ask(teacher, unit, heads), unit, heads)
    alone_R1 = np.concatenate([rows_of(await ask(teacher, [one], heads), [one], heads) for one in unit])
    apart_RR = np.abs(together_R1 - alone_R1.T)  # each answer, and what each request gets alone
    own_R = np.diag(apart_RR)
    mixed = np.flatnonzero((own_R > NOISE) & (apart_RR.min(axis=1) < own_R / CLEARLY))
    if len(mixed):
        raise refusal(
            "order",
            f"teacher {teacher.name}: of {len(unit)} requests at once, {len(mixed)} got an answer nearer to what "
            f"another request gets alone ({own_R[mixed[0]]:.3g} nats away from its own).",
            "Answer in the order of the requests.",
            f"{len(mixed)} of {len(unit)} mixed up",
            "none",
        )
    return ProbeResult("order", f"{own_R.max():.1e} nats from each request alone", "answers in order")
