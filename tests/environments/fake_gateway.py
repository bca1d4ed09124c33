"""A gateway without HTTP: sessions are taken note of, and what happened in one is what the test says."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from fastapi import FastAPI

from limbeck.environments.session import Session
from limbeck.gateway import Address, SessionReport
from limbeck.protocols import Generate
from limbeck.records import Context, Failure, Key, Prompt, Sampled, SampleRequest, Sampling

PROMPT = Prompt("p1", (1, 2), answer="46", metadata={"row": {"question": "12+34"}})
KEY = Key("p1", sample=3)


async def submit(request: SampleRequest) -> Sampled | Failure:
    return Sampled(np.array([5, 6]), np.array([-1.0, -2.0], dtype=np.float32), "stop", 0)


async def session(turns: int = 0) -> Session:
    generate = Session(PROMPT, KEY, Sampling(1.0, 8), submit)
    for turn in range(turns):
        await generate(Context(np.array([9]), parent=turn - 1 if turn else None))
    return generate


class FakeGateway:
    url = "http://here"

    def __init__(self, report: SessionReport | None = None) -> None:
        self.app = FastAPI()
        self.report = report or SessionReport(requests=1, turns=1)
        self.open_now: dict[str, Generate] = {}
        self.opened = itertools.count()

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *error: object) -> None:
        assert not self.open_now, "a session was left open"

    def open(self, generate: Generate, name: str = "") -> Address:
        id = f"s{next(self.opened)}"
        self.open_now[id] = generate
        return Address(id, f"http://here/sessions/{id}/v1", f"key-{id}")

    def close(self, id: str) -> SessionReport:
        del self.open_now[id]
        return self.report
