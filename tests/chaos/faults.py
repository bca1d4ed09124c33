"""The faults that the proxy makes, and how often."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """`rate` of the requests have it, and at most `most` in one run."""

    name: str
    does: str
    rate: float
    most: int = 12


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("drop", "the connection ends before an answer", 0.1, 4),
        Fault("delay", "the answer comes late", 0.3),
        Fault("cut", "the answer ends in its middle", 0.1, 4),
        Fault("stall", "the answer stops in its middle, and the connection stays open", 0.1, 2),
        Fault("request bit", "one bit, or a few bytes, of the request's body change", 0.2),
        Fault("answer bit", "one bit, or a few bytes, of the answer's body change", 0.2),
        Fault("header", "the same in the head of the request or of the answer", 0.2),
        Fault("swap", "two requests that are under way get each other's answers", 0.5),
        Fault("duplicate", "an answer is delivered again, to the next request; or a request twice, to the server", 0.2),
        Fault("replay", "an earlier answer comes again, to the same request where there was one", 0.2),
        Fault("reroute", "another server answers, with another model of the same size", 0.1),
        Fault("strip", "the headers Limbeck-* are taken out of the request, the answer, or both", 0.2),
        Fault("restart", "the server is killed and started again", 0.1, 1),
        Fault("other model", "the server is killed and started again with another model", 0.1, 1),
    )
}


def damaged(data: bytes, rng: random.Random) -> bytes:
    """`data` with one bit flipped, or, one time in four, with other bytes in some place."""
    at = rng.randrange(len(data))
    if rng.random() < 0.25:
        put = rng.randbytes(min(len(data) - at, rng.randrange(1, 9)))
        if put != data[at : at + len(put)]:
            return data[:at] + put + data[at + len(put) :]
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
