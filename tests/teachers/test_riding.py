"""A probe goes along with every step: sent last, answered before any score is returned, never the same twice."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from limbeck.config.teacher import SGLangTeacherConfig
from limbeck.contract.remote import prove_remote
from limbeck.errors import ContractError
from limbeck.records import TokenScores
from limbeck.teachers.remote import RemoteTeacher
from limbeck.teachers.riding import RidingProbe
from limbeck.wire.http import SENT
from tests.fake_server import FakeServer
from tests.teachers.test_remote import TEXTS, client_of, prove, requests


class Caching(FakeServer):
    """Answers what it was asked before as it did then, whatever its weights are now."""

    def _sglang(self, body: dict[str, Any]) -> dict[str, Any]:
        self.cache: dict[str, Any] = getattr(self, "cache", {})
        key = json.dumps({name: value for name, value in body.items() if name != "rid"})
        if key not in self.cache:
            self.cache[key] = super()._sglang(body)
        answer = json.loads(json.dumps(self.cache[key]))
        answer["meta_info"]["id"] = body["rid"]
        return answer


async def test_a_server_that_answers_the_same_question_from_a_cache_is_found_changed() -> None:
    async with Caching() as server:
        teacher = await prove(client_of(server, "sglang"), 0.7)
        await teacher.score(requests(0.7))
        server.set_weights(5)
        with pytest.raises(ContractError, match="drifted"):
            await teacher.score(requests(0.7))
        await teacher.close()


@pytest.mark.parametrize("kind", ["sglang", "vllm"])
async def test_the_probe_is_the_last_of_a_steps_requests_and_always_another_text(kind: str) -> None:
    async with FakeServer(knows_temperature=True) as server:
        teacher = await prove(client_of(server, kind), 0.7)
        seen = []
        for _ in range(4):
            server.bodies.clear()
            asked = requests(0.7)
            await teacher.score(asked)
            sent = [body["input_ids" if kind == "sglang" else "prompt"] for body in server.bodies]
            assert len(sent) == len(asked)  # one of them is empty and is not asked about
            assert tuple(sent[-1][:20]) == TEXTS[-1][:20]
            seen.append(tuple(sent[-1]))
        assert len(set(seen)) == 4
        await teacher.close()


async def test_samples_that_are_scored_one_by_one_share_probes_and_none_is_returned_before_its_own() -> None:
    async with FakeServer(knows_temperature=True) as server:
        teacher = await prove(client_of(server, "sglang"), 0.7)
        server.bodies.clear()
        asked = [request for request in requests(0.7, 12, "sampled")[1:] for _ in range(4)]
        answers = await asyncio.gather(*(teacher.score([request]) for request in asked))
        assert all(isinstance(answer, TokenScores) for (answer,) in answers)
        probes = len(server.bodies) - len(asked)
        assert 1 <= probes < len(asked) / 2
        server.set_weights(5)
        late = await asyncio.gather(*(teacher.score([request]) for request in asked), return_exceptions=True)
        assert all(isinstance(error, ContractError) for error in late)
        await teacher.close()


async def test_a_probe_that_waits_is_shared_and_one_that_was_sent_is_not() -> None:
    sent, gates = [], []

    async def probe() -> None:
        sent.append("probe")
        gates.append(asyncio.Event())
        await gates[-1].wait()

    async def question(name: str) -> str:
        sent.append(name)
        say_sent = SENT.get()
        assert say_sent is not None
        say_sent()
        return name

    riding = RidingProbe(probe)
    calls = [asyncio.create_task(riding.along_with([question("a"), question("b")]))]
    await asyncio.sleep(0.01)
    calls += [asyncio.create_task(riding.along_with([question(name)])) for name in "cd"]
    await asyncio.sleep(0.01)
    assert sent == ["a", "b", "probe", "c", "d"]
    gates[0].set()
    assert await calls[0] == ["a", "b"]
    await asyncio.sleep(0.01)
    assert sent[5:] == ["probe"]
    assert not any(call.done() for call in calls[1:])
    gates[1].set()
    assert await asyncio.gather(*calls[1:]) == [["c"], ["d"]]


async def test_a_question_that_is_sent_again_after_the_probe_is_followed_by_another() -> None:
    order: list[str] = []

    async def probe() -> None:
        order.append("probe")

    async def question(times: int) -> int:
        for _ in range(times):
            say_sent = SENT.get()
            assert say_sent is not None
            say_sent()
            order.append("sent")
            await asyncio.sleep(0.01)
        return times

    riding = RidingProbe(probe)
    assert await riding.along_with([question(1), question(1)]) == [1, 1]
    assert order == ["sent", "sent", "probe"]
    order.clear()
    assert await riding.along_with([question(1), question(3)]) == [1, 3]
    assert order == ["sent", "sent", "probe", "sent", "sent", "probe"]


async def test_a_server_that_is_replaced_before_a_busy_question_is_asked_again_is_found_out() -> None:
    class Busy(FakeServer):
        waits = False

        async def _answer(self, writer: Any, path: str, body: dict[str, Any]) -> bool:
            if self.waits:
                self.waits = False
                asyncio.get_running_loop().call_later(0.1, self.set_weights, 5)
                return await self._send(writer, 429, b"later", ["retry-after: 0.4"])
            return await super()._answer(writer, path, body)

    async with Busy(knows_temperature=True) as server:
        teacher = await prove(client_of(server, "sglang"), 0.7)
        await teacher.score(requests(0.7))
        server.waits = True
        with pytest.raises(ContractError, match="drifted"):
            await teacher.score(requests(0.7))
        await teacher.close()


async def test_lists_that_change_alone_are_found_out() -> None:
    class Lists(FakeServer):
        others = False

        def _scores(self, ids: list[int], start: int, top: int, asked: float | None) -> tuple[list[Any], list[Any]]:
            single, lists = super()._scores(ids, start, top, asked)
            if self.others:
                for (_, own), row in zip(single, lists, strict=True):
                    if any(token == own for _, token in row):
                        row[:] = [[value if token == own else value - 1.0, token] for value, token in row]
                        row.sort(reverse=True)
            return single, lists

    async with Lists(knows_temperature=True) as server:
        teacher = await prove(client_of(server, "sglang"), 0.7)
        await teacher.score(requests(0.7))
        server.others = True
        with pytest.raises(ContractError, match="drifted"):
            await teacher.score(requests(0.7))
        await teacher.close()


async def test_a_context_that_is_cut_during_the_run_is_found_out() -> None:
    class Cuts(FakeServer):
        window = 0

        def truth(self, ids: Any, start: int, temperature: float) -> np.ndarray:
            whole = super().truth(ids, start, temperature)
            for row in range(len(whole)) if self.window else ():
                end = row + start
                if end > self.window:
                    whole[row] = super().truth(ids[end - self.window : end + 1], self.window, temperature)[0]
            return whole

    async with Cuts(knows_temperature=True) as server:
        teacher = await prove(client_of(server, "sglang"), 0.7)
        await teacher.score(requests(0.7))
        server.window = 100
        with pytest.raises(ContractError, match="drifted"):
            await teacher.score(requests(0.7))
        await teacher.close()


@pytest.mark.parametrize("length", [1, 2])
async def test_prompts_of_a_token_or_two_have_a_probe_too(length: int) -> None:
    async with FakeServer(knows_temperature=True) as server:
        client = client_of(server, "sglang")
        texts = [tuple(range(5, 5 + length)), tuple(range(6, 6 + length))]
        proof = await prove_remote(client, texts, list(range(20)), 1.0, support=5, longest=40)
        teacher = RemoteTeacher(client, proof)
        await teacher.score(requests(1.0))
        server.set_weights(5)
        with pytest.raises(ContractError, match="drifted"):
            await teacher.score(requests(1.0))
        await teacher.close()


async def test_a_probe_that_fails_stops_all_that_wait_for_it() -> None:
    async def probe() -> None:
        raise ContractError("changed")

    async def question() -> int:
        return 1

    riding = RidingProbe(probe)
    found = await asyncio.gather(*(riding.along_with([question()]) for _ in range(3)), return_exceptions=True)
    assert [str(error) for error in found] == ["changed"] * 3


def test_an_old_recipe_is_told_that_the_key_is_gone() -> None:
    with pytest.raises(ValidationError, match="probe_every is gone: a probe goes along with every step now"):
        SGLangTeacherConfig(url="http://x", probe_every=4)  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", ["sglang", "vllm"])
@pytest.mark.parametrize("route", [True, False])
async def test_a_permuted_vocabulary_is_refused_with_and_without_a_route_for_it(kind: str, route: bool) -> None:
    class Ours:
        bos_token_id = None

        def __call__(self, text: str, **_: Any) -> Any:
            return type("Encoding", (), {"input_ids": [ord(c) % 99 for c in text]})

        def decode(self, ids: list[int], **_: Any) -> str:
            return "".join(map(chr, ids))

    order = np.random.default_rng(0).permutation(99)
    for permuted in (False, True):
        server = FakeServer(
            knows_temperature=True,
            tokenizer=lambda text: [int(order[ord(c) % 99]) if permuted else ord(c) % 99 for c in text],  # noqa: B023
        )
        server.routes = FakeServer.routes if route else FakeServer.routes[:2]  # type: ignore[misc]
        async with server:
            if permuted:
                with pytest.raises(ContractError, match=r"splits .* into") as caught:
                    await prove(client_of(server, kind), 0.7, tokenizer=Ours())
                assert caught.value.results[-1].probe == "tokenizer"
            else:
                await (await prove(client_of(server, kind), 0.7, tokenizer=Ours())).close()
