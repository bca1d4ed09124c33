"""An answer is taken for what it was asked for, of the weights that answered before, or not at all."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import RecipeError
from limbeck.records import ScoreRequest, request_of
from limbeck.wire import binding, http, sglang, vllm
from limbeck.wire.bearer import bearer_token
from limbeck.wire.binding import Echo, Known
from limbeck.wire.http import Pool, PoolSettings
from limbeck.wire.score import LONGEST_MESSAGE, Kind, WireError, integer, number

ROUTE = "/limbeck/score"
Handle = Callable[[httpx.Request], httpx.Response]


class Bound:
    """A server that binds its answers: it answers with what it was sent. `way` is what lies between."""

    def __init__(self, weights: str = "w1", key: bytes = b"", way: Callable[[Handle], Handle] | None = None) -> None:
        self.weights, self.key, self.asked = weights, key, 0
        self.handle: Handle = way(self.honest) if way else self.honest

    def honest(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        body, headers = request.read(), request.headers
        try:
            digest = binding.verified_request(self.key, request.method, request.url.path, body, headers)
        except WireError as error:
            return httpx.Response(400, text=str(error), headers={binding.PROBLEM: "request"})
        answer = b"answer to " + body
        return httpx.Response(
            200, content=answer, headers=binding.answer_headers(self.key, digest, 200, self.weights, 0.7, answer)
        )


def pool_of(handle: Handle, *, binds: bool = True, tries: int = 10, token_env: str | None = None) -> Pool:
    settings_ = PoolSettings(binds=binds, tries=tries, first_wait=0.0, patience=0.0, token_env=token_env)
    return Pool(["http://server"], settings_, httpx.MockTransport(handle))


async def ask(pool: Pool, body: bytes) -> bytes:
    return await pool.post(ROUTE, lambda _: body, lambda data, _: data)


async def test_an_honest_server_is_believed_and_its_stamp_is_kept() -> None:
    pool, seen = pool_of(Bound().honest), []
    await pool.post(ROUTE, lambda _: b"x", lambda data, echo: seen.append(echo.stamp))
    assert seen == [binding.Stamp("w1", 0.7)]
    assert pool.known["http://server"].weights == "w1"
    assert not pool.counts.wrong


async def test_exchanged_and_replayed_answers_are_asked_for_again() -> None:
    held: list[httpx.Response] = []

    def one_behind(honest: Handle) -> Handle:
        """Answers to the request before, once each."""

        def handle(request: httpx.Request) -> httpx.Response:
            held.append(honest(request))
            return held[-2] if len(held) % 2 == 0 else held[-1]

        return handle

    pool = pool_of(Bound(way=one_behind).handle)
    for text in (b"yes\n", b"yes\n", b"no", b"yes\n"):  # a request of the same body is another request all the same
        assert await ask(pool, text) == b"answer to " + text
    assert pool.counts.wrong == {"unbound": 3}


@given(st.integers(0, 2**32), st.sampled_from(["request", "answer"]), st.sampled_from(["flip", "cut", "add"]))
@settings(max_examples=200, deadline=None)
def test_no_damage_passes(seed: int, what: str, how: str) -> None:
    rng = random.Random(seed)

    def damaged(data: bytes) -> bytes:
        place = rng.randrange(len(data))
        if how == "cut":
            return data[:place]
        if how == "add":
            return data[:place] + bytes([rng.randrange(256)]) + data[place:]
        return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]

    def way(honest: Handle) -> Handle:
        def handle(request: httpx.Request) -> httpx.Response:
            if what == "request":
                return honest(
                    httpx.Request(
                        request.method, request.url, headers=_plain(request.headers), content=damaged(request.read())
                    )
                )
            answer = honest(request)
            return httpx.Response(200, headers=_plain(answer.headers), content=damaged(answer.content))

        return handle

    assert _outcome(pool_of(Bound(way=way).handle, tries=1), b"12+34=46") == "unbound"


def _plain(headers: httpx.Headers) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("limbeck")}


def _outcome(pool: Pool, body: bytes) -> str:
    import asyncio

    try:
        return asyncio.run(ask(pool, body)).decode()
    except WireError as error:
        return error.kind


@pytest.mark.parametrize(
    ("header", "value", "outcome"),
    [
        (binding.WEIGHTS, "w2", "unbound"),
        (binding.TEMPERATURE, "0.8", "unbound"),
        (binding.ANSWER, "0" * 64, "unbound"),
        (binding.ANSWER, "é", "unbound"),
        (binding.WEIGHTS, None, "unbound"),
        (binding.ANSWER, None, "unbound"),
    ],
)
def test_no_changed_or_missing_header_passes(header: str, value: str | None, outcome: str) -> None:
    def way(honest: Handle) -> Handle:
        def handle(request: httpx.Request) -> httpx.Response:
            answer = honest(request)
            headers = {**_plain(answer.headers)} | ({} if value is None else {header: value})
            if value is None:
                del headers[header]
            return httpx.Response(
                200, headers=[(k.encode(), v.encode()) for k, v in headers.items()], content=answer.content
            )

        return handle

    assert _outcome(pool_of(Bound(way=way).handle, tries=2), b"x") == outcome


def test_a_nonce_or_digest_of_a_request_that_is_changed_or_alone_is_refused() -> None:
    headers = binding.request_headers(b"", "POST", ROUTE, b"x", binding.new_nonce())
    assert binding.verified_request(b"", "POST", ROUTE, b"x", headers) == headers[binding.REQUEST]
    assert binding.verified_request(b"", "POST", ROUTE, b"x", {}) == ""
    wrong: list[tuple[str, str, bytes, dict[str, str]]] = [
        ("GET", ROUTE, b"x", headers),
        ("POST", "/generate", b"x", headers),
        ("POST", ROUTE, b"y", headers),
        ("POST", ROUTE, b"x", headers | {binding.NONCE: binding.new_nonce()}),
        ("POST", ROUTE, b"x", headers | {binding.REQUEST: ""}),
        ("POST", ROUTE, b"x", {binding.NONCE: headers[binding.NONCE]}),
        ("POST", ROUTE, b"x", {binding.REQUEST: headers[binding.REQUEST]}),
    ]
    for method, route, body, given_ in wrong:
        with pytest.raises(WireError):
            binding.verified_request(b"", method, route, body, given_)


async def test_other_weights_are_asked_around_and_named() -> None:
    first, other, turn = Bound("w1"), Bound("w2"), iter([0, 0, 1, 1, 0])
    pool = pool_of(lambda request: (first, other)[next(turn, 1)].honest(request))
    assert await ask(pool, b"a") == b"answer to a"
    assert await ask(pool, b"b") == b"answer to b"
    assert await ask(pool, b"c") == b"answer to c"  # two answers of the other model, then one of the right one
    assert pool.counts.wrong == {"other_model": 2}
    with pytest.raises(WireError, match="weights w2, expected w1") as caught:
        await ask(pool, b"d")
    assert caught.value.kind == "other_model"


async def test_a_server_that_bound_its_answers_must_go_on_doing_so() -> None:
    answers = iter([True, False])
    server = Bound()

    def handle(request: httpx.Request) -> httpx.Response:
        return server.honest(request) if next(answers, False) else httpx.Response(200, content=b"plain")

    pool = pool_of(handle, binds=False, tries=2)  # of a kind that need not
    assert await ask(pool, b"a") == b"answer to a"
    with pytest.raises(WireError, match="carries no digest"):
        await ask(pool, b"b")
    plain = pool_of(lambda _: httpx.Response(200, content=b"plain"), binds=False)
    assert await ask(plain, b"a") == b"plain"
    with pytest.raises(WireError, match="carries no digest"):
        await ask(pool_of(lambda _: httpx.Response(200, content=b"plain"), tries=1), b"a")


async def test_a_refusal_counts_only_where_the_server_itself_gave_it() -> None:
    server, first = Bound(), iter([True])

    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(400, text="somebody else's") if next(first, False) else server.honest(request)

    pool = pool_of(handle)
    assert await ask(pool, b"a") == b"answer to a"
    assert pool.counts.wrong == {"unbound": 1}


async def test_the_token_keys_the_digests_and_is_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "sesame")
    assert await ask(pool_of(Bound(key=b"sesame").honest, token_env="TOKEN"), b"a") == b"answer to a"
    for key in (b"", b"another"):  # a request that whoever is there cannot verify, or an answer that it cannot sign
        with pytest.raises(WireError, match="does not fit its digest"):
            await ask(pool_of(Bound(key=key).honest, token_env="TOKEN", tries=1), b"a")
    for token in ("sesame\n", " sesame", "ses\rame", "sésame", "ses\x00ame"[:3] + "\x7f"):
        monkeypatch.setenv("TOKEN", token)
        with pytest.raises(RecipeError, match="no header can carry") as caught:
            bearer_token("TOKEN", "teacher.token_env")
        assert token.strip() not in str(caught.value)


async def test_what_a_server_says_is_made_visible_and_short() -> None:
    evil = "\x1b]0;owned\x07\u202e" + "x" * 5000

    async def said(handle: Handle) -> str:
        with pytest.raises(WireError) as caught:
            await ask(pool_of(handle, binds=False, tries=1), b"a")
        return str(caught.value)

    def parse_error(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=json.dumps({"data": [{"id": evil}]}).encode())

    statuses = (302, 404, 418, 500, 503)
    texts = [await said(lambda _, status=status: httpx.Response(status, text=evil)) for status in statuses]
    with pytest.raises(WireError) as caught:
        number(evil, "log-prob")
    identity = vllm.read_identity(json.loads(parse_error(httpx.Request("GET", "http://x")).content))
    for text in (*texts, str(caught.value), identity):
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert len(text) < LONGEST_MESSAGE + 200


async def test_retries_of_unbound_answers_are_logged_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(WireError):
        await ask(pool_of(lambda _: httpx.Response(200, content=b"plain"), tries=5), b"a")
    assert len([record for record in caplog.records if "asked for again" in record.getMessage()]) == 1


async def test_an_endless_answer_ends_at_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_ANSWER", 1000)
    with pytest.raises(WireError, match="longer than"):
        await ask(pool_of(lambda _: httpx.Response(200, content=b"x" * 1001), binds=False, tries=1), b"a")


@pytest.mark.parametrize("value", [2**63, -(2**64), 10**400])
def test_integers_beyond_63_bits_are_no_ids(value: int) -> None:
    with pytest.raises(WireError, match="bits"):
        integer(value, "token id")


def test_integers_beyond_any_float_are_no_numbers() -> None:
    assert number(2**70, "log-prob") == 2.0**70
    with pytest.raises(WireError, match="more digits"):
        number(10**400, "log-prob")


# --- stock servers: whatever they repeat of a request is compared ------------------------------------------

REQUEST = request_of([5, 6, 7, 8], 2, 1.0, "sampled")


def sglang_answer(request: ScoreRequest, nonce: str, **changes: Any) -> dict[str, Any]:
    ids = request.token_ids.tolist()
    rows = [[None, ids[request.start - 1], None], *([-0.5, i, None] for i in ids[request.start :])]
    meta = {"id": nonce, "prompt_tokens": len(ids), "input_token_logprobs": rows}
    return {"prompt_token_ids": ids, "meta_info": meta} | changes


def vllm_answer(request: ScoreRequest, nonce: str, **changes: Any) -> dict[str, Any]:
    ids = request.token_ids.tolist()
    rows = [None, *({str(i): {"logprob": -0.5}} for i in ids[1:])]
    choice = {"prompt_logprobs": rows, "prompt_token_ids": ids}
    return {"id": f"cmpl-{nonce}", "model": "m", "choices": [choice]} | changes


SCHEMAS = [(sglang, sglang_answer), (vllm, vllm_answer)]


def kind_of(schema: Any, answer: Any, echo: Echo) -> Kind | None:
    try:
        schema.read(answer, REQUEST, False, echo)
    except WireError as error:
        return error.kind
    return None


@pytest.mark.parametrize(("schema", "say"), SCHEMAS)
def test_a_server_that_repeated_the_requests_id_must_repeat_each(schema: Any, say: Any) -> None:
    known = Known()
    assert kind_of(schema, say(REQUEST, "of its own"), Echo("n1", known)) is None  # a gateway's: nothing is concluded
    assert kind_of(schema, say(REQUEST, "n2"), Echo("n2", known)) is None
    assert kind_of(schema, say(REQUEST, "n2"), Echo("n3", known)) == "unbound"
    assert kind_of(schema, say(REQUEST, 7), Echo("n3", known)) == "unbound"


@pytest.mark.parametrize(("schema", "say"), SCHEMAS)
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_changed_token_of_a_prompt_shows_in_what_is_repeated(schema: Any, say: Any, place: int) -> None:
    ids = REQUEST.token_ids.copy()
    ids[place] ^= 8
    scored_elsewhere = say(request_of(ids, 2, 1.0), "n")
    assert kind_of(schema, scored_elsewhere, Echo("n")) in ("unbound", "wrong_ids")


def test_older_builds_show_less_and_all_of_it_is_compared() -> None:
    answer = sglang_answer(REQUEST, "n")
    del answer["prompt_token_ids"]
    assert kind_of(sglang, answer, Echo("n")) is None
    answer["meta_info"]["prompt_tokens"] = 5
    assert kind_of(sglang, answer, Echo("n")) == "unbound"
    answer["meta_info"]["prompt_tokens"] = 4
    answer["meta_info"]["input_token_logprobs"][0][1] = 7  # the token before the first scored one was 6
    assert kind_of(sglang, answer, Echo("n")) == "unbound"
    known = Known()
    known.echoes.add("prompt ids")  # but not of a build that showed more before
    assert kind_of(sglang, sglang_answer(REQUEST, "n", prompt_token_ids=None), Echo("n", known)) == "unbound"
    older = vllm_answer(REQUEST, "n")
    del older["choices"][0]["prompt_token_ids"]
    assert kind_of(vllm, older, Echo("n")) is None
    older["choices"][0]["prompt_logprobs"][1] = {"9": {"logprob": -0.5}}
    assert kind_of(vllm, older, Echo("n")) == "unbound"


def test_another_models_name_is_noticed() -> None:
    known = Known()
    assert kind_of(vllm, vllm_answer(REQUEST, "n", model="a"), Echo("n", known)) is None
    assert kind_of(vllm, vllm_answer(REQUEST, "n", model="b"), Echo("n", known)) == "other_model"
    assert kind_of(vllm, vllm_answer(REQUEST, "n", model=None), Echo("n", known)) == "unbound"


@pytest.mark.parametrize("schema", [sglang, vllm])
def test_every_try_is_a_request_of_its_own(schema: Any) -> None:
    first, second = schema.ties(binding.new_nonce()), schema.ties(binding.new_nonce())
    assert first.keys() == second.keys()
    assert first != second


@pytest.mark.parametrize("status", [301, 404, 405, 410, 413, 422])
async def test_a_gateways_refusal_does_not_end_the_asking(status: int) -> None:
    server, turn = Bound(), iter([False, True, True, True])

    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, text="gateway") if next(turn, False) else server.honest(request)

    pool = pool_of(handle)
    assert await ask(pool, b"a") == b"answer to a"
    assert await ask(pool, b"b") == b"answer to b"
    assert pool.counts.wrong == {"unbound": 3}


async def test_a_server_that_says_to_come_back_at_once_is_not_asked_without_a_pause() -> None:
    settings_ = PoolSettings(first_wait=0.2, patience=0.5)
    pool = Pool(
        ["http://server"], settings_, httpx.MockTransport(lambda _: httpx.Response(429, headers={"retry-after": "0"}))
    )
    with pytest.raises(WireError):
        await ask(pool, b"a")
    assert pool.counts.requests < 20


def test_a_servers_text_begins_no_line_of_its_own() -> None:
    assert "\n" not in str(WireError("server", "boom\nerror: forged"))
    assert "\n" not in vllm.read_identity({"data": [{"id": "m\nerror: forged"}]})


def test_a_model_is_compared_with_the_one_that_was_asked_for() -> None:
    with pytest.raises(WireError, match="model 'teachdr', expected 'teacher'"):
        Echo().expecting("teacher").model("teachdr")
    Echo().expecting("teacher").model("teacher")
