"""Agents that run elsewhere: how they ask for work, and how a session ends."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest

from limbeck.environments.outside import OutsideAgents
from limbeck.records import Episode, Failure
from tests.environments.fake_gateway import KEY, PROMPT, FakeGateway, session
from tests.environments.test_agent import grade
from tests.environments.test_agent_processes import until


@asynccontextmanager
async def outside(timeout: float = 30, token: str | None = None):
    gateway = FakeGateway()
    agents = OutsideAgents(gateway, "student", lambda prompt: prompt.metadata["row"], grade, timeout, token)  # type: ignore[arg-type]
    await agents.start()
    transport = httpx.ASGITransport(gateway.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8600") as client:
        yield agents, client
    await agents.close()


def bearing(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_work_waits_until_somebody_asks_for_it_and_ends_with_a_reward() -> None:
    async with outside() as (agents, client):
        rollout = asyncio.create_task(agents.run(PROMPT, KEY, await session(turns=1)))
        await until(lambda: agents._waiting)
        assert (await client.get("/sessions")).json() == {"waiting": 1, "running": 0}
        work = (await client.post("/sessions")).json()
        assert work == {
            "id": "s0", "base_url": "http://here/sessions/s0/v1", "api_key": "key-s0", "model": "student",
            "row": {"question": "12+34"}, "prompt_id": "p1", "sample": 3, "timeout": 30,
        }  # fmt: skip
        assert (await client.get("/sessions")).json() == {"waiting": 0, "running": 1}
        ended = await client.post("/sessions/s0/end", json={"reward": 0.5})
        assert ended.json() == {"id": "s0", "ended": True}
        episode = await rollout
        assert isinstance(episode, Episode)
        assert episode.reward == 0.5
        assert (await client.post("/sessions/s0/end", json={"reward": 1})).status_code == 404


@pytest.mark.parametrize(
    ("body", "reward"),
    [({}, None), ({"reward": None}, None), ({"answer": "46"}, 1.0), ({"reward": 1, "turn_rewards": [1]}, 1.0)],
)
async def test_the_ways_to_end(body, reward) -> None:
    async with outside() as (agents, client):
        rollout = asyncio.create_task(agents.run(PROMPT, KEY, await session(turns=1)))
        id = (await client.post("/sessions")).json()["id"]
        await client.post(f"/sessions/{id}/end", json=body)
        episode = await rollout
        assert isinstance(episode, Episode)
        assert episode.reward == reward


async def test_an_error_and_a_time_limit_are_failures_and_the_session_is_closed() -> None:
    async with outside(timeout=0.05) as (agents, client):
        for kind, words in (("agent_error", "the tool broke"), ("timeout", "environment.timeout = 0.05")):
            rollout = asyncio.create_task(agents.run(PROMPT, KEY, await session(turns=1)))
            id = (await client.post("/sessions")).json()["id"]
            if kind == "agent_error":
                await client.post(f"/sessions/{id}/end", json={"error": "the tool broke"})
            failure = await rollout
            assert isinstance(failure, Failure)
            assert failure.kind == kind
            assert words in failure.message
            assert (await client.post(f"/sessions/{id}/end", json={})).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'{"reward": NaN}',
        b'{"reward": "much"}',
        b'{"rewards": 1}',
        b'{"reward": 1, "answer": "46"}',
        b"\xff",
    ],
)
async def test_an_end_that_cannot_be_read_is_refused_and_the_session_stays_open(body) -> None:
    async with outside() as (agents, client):
        rollout = asyncio.create_task(agents.run(PROMPT, KEY, await session(turns=1)))
        id = (await client.post("/sessions")).json()["id"]
        refused = await client.post(f"/sessions/{id}/end", content=body)
        assert refused.status_code == 400
        assert "still open" in refused.json()["error"]["message"]
        await client.post(f"/sessions/{id}/end", json={"reward": 1})
        assert isinstance(await rollout, Episode)


async def test_without_work_a_request_waits_as_long_as_it_says() -> None:
    async with outside() as (agents, client):
        assert (await client.post("/sessions?wait=0")).status_code == 204
        assert (await client.post("/sessions?wait=1e9")).status_code == 400
        asked = asyncio.create_task(client.post("/sessions?wait=30"))
        await asyncio.sleep(0.01)
        rollout = asyncio.create_task(agents.run(PROMPT, KEY, await session(turns=1)))
        assert (await asked).json()["id"] == "s0"
        rollout.cancel()  # the run stops
        await asyncio.gather(rollout, return_exceptions=True)
        assert (await client.get("/sessions")).json() == {"waiting": 0, "running": 0}


async def test_a_run_that_stops_takes_back_work_that_nobody_took() -> None:
    async with outside() as (agents, client):
        rollout = asyncio.create_task(agents.run(PROMPT, KEY, await session()))
        await until(lambda: agents._waiting)
        rollout.cancel()
        await asyncio.gather(rollout, return_exceptions=True)
        assert (await client.post("/sessions?wait=0")).status_code == 204


@pytest.mark.parametrize(
    ("headers", "status"), [({"Origin": "https://evil.example"}, 403), ({"Host": "evil.example"}, 400)]
)
async def test_without_a_token_a_web_page_gets_no_work(headers: dict[str, str], status: int) -> None:
    async with outside() as (agents, client):
        rollout = asyncio.create_task(agents.run(PROMPT, KEY, await session(turns=1)))
        await until(lambda: agents._waiting)
        assert (await client.post("/sessions", headers=headers)).status_code == status
        assert (await client.get("/sessions", headers=headers)).status_code == status
        work = (await client.post("/sessions", headers={"Host": "localhost:8600"})).json()
        end = f"/sessions/{work['id']}/end"
        assert (await client.post(end, json={"reward": 1}, headers=headers)).status_code == status
        assert (await client.post(end, json={"reward": 1}, headers=bearing(work["api_key"]))).status_code == 200
        assert isinstance(await rollout, Episode)


async def test_who_has_not_the_token_gets_no_work_and_a_session_is_ended_by_its_own_key() -> None:
    async with outside(token="secret") as (agents, client):
        rollout = asyncio.create_task(agents.run(PROMPT, KEY, await session(turns=1)))
        for headers in ({}, bearing("wrong"), {"Authorization": "secret"}):
            assert (await client.post("/sessions", headers=headers)).status_code == 401
            assert (await client.get("/sessions", headers=headers)).status_code == 401
        work = (await client.post("/sessions", headers=bearing("secret"))).json()
        end = f"/sessions/{work['id']}/end"
        assert (await client.post(end, json={}, headers=bearing("wrong"))).status_code == 401
        assert (await client.post(end, json={"reward": 1}, headers=bearing(work["api_key"]))).status_code == 200
        assert isinstance(await rollout, Episode)
