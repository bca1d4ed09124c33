"""Every server that lies is refused by the probe that is there for it, whatever its teacher; its honest twin passes."""

from __future__ import annotations

import asyncio
import json
from itertools import product
from typing import Any

import numpy as np
import pytest

from limbeck.config.teacher import SGLangTeacherConfig, VLLMTeacherConfig
from limbeck.contract.check import check_teacher
from limbeck.contract.remote import prove_remote
from limbeck.errors import ContractError
from limbeck.models.loading import load_tokenizer
from limbeck.records import ScoreRequest
from limbeck.teachers.client import RemoteClient
from limbeck.teachers.connect import BACKENDS
from limbeck.teachers.remote import Proof
from limbeck.wire.binding import Echo
from limbeck.wire.http import Pool, PoolSettings
from limbeck.wire.score import Reply, WireError
from tests.fake_server import log_softmax
from tests.liars import LIES, TEACHERS, Liar, Lie

KINDS = {"sglang": SGLangTeacherConfig, "vllm": VLLMTeacherConfig}
TEMPERATURES = (0.7, 1.0, 1.3)
LARGE = {  # by default under another teacher than the demo's, which answers fastest, or whose windows do
    "divides the log-probs by T, and does not normalise": "peaked",
    "reads the logits after the token": "peaked",
    "adds a BOS": "flat",
    "cuts the context to 32 tokens": "flat",
    "reads the first 8 and the last 16": "flat",
    "uses base 2": "flat",
    "floors a nucleus at 1e-30": "flat",
    "is off by a constant": "flat",
}
BUILDS = ["stock", "acknowledges"]
COMBINATIONS = list(product(TEACHERS, TEMPERATURES, KINDS, BUILDS))


class Direct:
    """A dialect without the wire: what a schema writes is answered by a fake server of this process."""

    acknowledges = False

    def __init__(self, kind: str, server: Liar) -> None:
        self.kind, self.server, self.asked = kind, server, 0
        self.schema = BACKENDS[kind].dialect(BACKENDS[kind].config(url="http://t")).schema  # type: ignore[attr-defined]

    async def ask(
        self, pool: Any, request: ScoreRequest, url: str | None = None, *, acknowledges: bool = False
    ) -> Reply:
        self.asked += 1
        if len(request.token_ids) > 256:
            raise WireError("refused", "answered 400: longer than the context of 256")
        body = self.schema.write(request, "m", acknowledges) | self.schema.ties("n") | {"model": "m"}
        answer = self.server._sglang(body) if self.kind == "sglang" else self.server._vllm(body)
        try:
            return self.schema.read(json.loads(json.dumps(answer)), request, acknowledges, Echo("n"))
        except (ValueError, ArithmeticError) as error:
            raise WireError("malformed", str(error)) from None

    async def identity(self, pool: Any, url: str) -> str:
        self.asked += 1
        return "a model"

    async def tokenize(self, pool: Any, text: str) -> list[int]:
        if self.server.tokenizer is None:
            raise WireError("refused", "no route")
        ids: list[int] = self.server.tokenizer(text)
        return ids


async def prove(
    server: Liar, kind: str, temperature: float, tokenizer: Any = None, **options: Any
) -> tuple[Proof, Direct]:
    given = {"top_logprobs": 60, "max_rescale_dropped": 1.0} | options
    counted = given.pop("counted", True)
    section = KINDS[kind](url="http://server", **given)
    v = server.vocabulary
    dialect = Direct(kind, server)
    client = RemoteClient("t", section, dialect, Pool(section.urls, PoolSettings()), v, v, counted)  # type: ignore[arg-type]
    rng = np.random.default_rng(3)
    texts = [tuple(rng.integers(4, min(99, v), 20 + n).tolist()) for n in range(4)]
    support = 5 if server.lie is None else server.lie.support
    return await prove_remote(
        client, texts, rng.integers(0, 60, 16).tolist(), temperature, tokenizer, support=support, longest=160
    ), dialect


async def refused(lie: str, teacher: str, temperature: float, kind: str, build: str) -> str:
    """The name of the probe that refused, empty where none did and none had to."""
    server = Liar(TEACHERS[teacher](), LIES[lie], knows_temperature=build == "acknowledges")
    options: dict[str, Any] = {"temperature_method": "native"} if build == "acknowledges" and temperature != 1 else {}
    matters = server.differs(temperature if build == "acknowledges" else 1.0)
    if matters < 0.02:
        return ""
    with pytest.raises(ContractError) as caught:
        await prove(server, kind, temperature, **options)
    return next(result.probe for result in reversed(caught.value.results) if not result.ok)


async def check(lie: str, teacher: str, temperature: float, kind: str, build: str) -> None:
    probe = await refused(lie, teacher, temperature, kind, build)
    assert probe in ("", *(name if name != "native" else "method native" for name in LIES[lie].probe.split("|")))


def is_default(number: int, lie: Lie) -> bool:
    """Of those that read single positions, whatever the text, every other one."""
    return number % 2 == 0 or any((lie.rows, lie.heat, lie.hole))


@pytest.mark.parametrize(
    "number",
    [n if is_default(n, lie) else pytest.param(n, marks=pytest.mark.slow) for n, lie in enumerate(LIES.values())],
)
async def test_a_liar_is_refused_by_name(number: int) -> None:
    """Each with one of the combinations; the slow tests have every one."""
    lie = list(LIES)[number]
    of_teacher = [c for c in COMBINATIONS if c[0] == LARGE.get(lie, "demo")]
    hot = [c for c in of_teacher if c[1] != 1 and c[3] == "acknowledges"] if LIES[lie].hot else of_teacher
    await check(lie, *hot[(7 * number) % len(hot)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "teacher", "temperature"), [(i, *c) for i, c in enumerate(product(TEACHERS, TEMPERATURES))]
)
@pytest.mark.parametrize("lie", LIES)
async def test_every_liar_is_refused_with_every_teacher(lie: str, place: int, teacher: str, temperature: float) -> None:
    """At every temperature. Kinds of server and builds take turns."""
    turn = (list(LIES).index(lie) + place) % 4
    await check(lie, teacher, temperature, list(KINDS)[turn % 2], BUILDS[turn // 2])


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize(
    ("temperature", "dtype"),
    [
        (0.7, "float32"),
        (1.3, "bfloat16"),
        *(pytest.param(t, d, marks=pytest.mark.slow) for t, d in product(TEMPERATURES, ["float32", "bfloat16"])),
    ],
)
async def test_the_honest_twin_passes(teacher: str, temperature: float, dtype: str) -> None:
    for kind, knows in (("sglang", True), ("vllm", False)):
        server = Liar(TEACHERS[teacher](dtype), None, knows_temperature=knows)
        proof, dialect = await prove(server, kind, temperature)
        assert proof.method == ("native" if knows else "plain" if temperature == 1 else "rescale")
        assert all(result.ok for result in proof.results)
        assert dialect.asked < 80


class Pairs:
    """A tokenizer of characters (ids below 60) and some pairs of them."""

    bos_token_id = None

    def __call__(self, text: str, **_: Any) -> Any:
        ids: list[int] = []
        for character in text:
            token = ord(character) % 60
            if ids and ids[-1] < 30 and ids[-1] == token:
                ids[-1] = 60 + token
            else:
                ids.append(token)
        return type("Encoding", (), {"input_ids": ids})

    def decode(self, ids: Any, **_: Any) -> str:
        return "".join(chr(60 + i) if i < 60 else chr(60 + i - 60) * 2 for i in ids)

    def again(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self(self.decode(ids)).input_ids)


async def test_a_server_that_tokenizes_what_it_reads_again_is_refused_where_the_tokenizer_is_here() -> None:
    """It is a causal model of the ids all the same: only two spellings of one text tell it apart."""
    tokenizer = Pairs()
    lie = Lie("spelling", sees=lambda ids, t: tokenizer.again(ids))
    for each in (None, lie):
        server = Liar(TEACHERS["peaked"](), each, tokenizer=lambda text: tokenizer(text).input_ids)
        if each is None:
            proof, _ = await prove(server, "sglang", 1.0, tokenizer=tokenizer)
            assert "one text in other tokens" in {r.probe: r.measured for r in proof.results}["spelling"]
        else:
            with pytest.raises(ContractError, match="tokenizes that again") as caught:
                await prove(server, "sglang", 1.0, tokenizer=tokenizer)
            assert caught.value.results[-1].probe == "spelling"


@pytest.mark.parametrize("dropped", [(), (2, 3), (3,)])
async def test_a_server_that_drops_special_tokens_before_it_scores_is_refused(dropped: tuple[int, ...]) -> None:
    class Special(Pairs):
        all_special_ids = (2, 3, 5000)  # the last one has no row

    def sees(ids: tuple[int, ...], t: int) -> tuple[int, ...]:
        return tuple(token for n, token in enumerate(ids) if not n or token not in dropped)

    tokenizer = Special()
    lie = Lie("special tokens", sees=sees) if dropped else None
    server = Liar(TEACHERS["demo"](), lie, tokenizer=lambda text: tokenizer(text).input_ids)
    if not dropped:
        proof, dialect = await prove(server, "sglang", 1.0, tokenizer=tokenizer)
        assert "2 of them" in {r.probe: r.measured for r in proof.results}["special tokens"]
        assert dialect.asked < 80
    else:
        with pytest.raises(ContractError, match="the server drops it before it scores") as caught:
            await prove(server, "sglang", 1.0, tokenizer=tokenizer)
        assert caught.value.results[-1].probe == "special tokens"


class Noisy(Liar):
    """An honest server whose logits are a little different with each request."""

    sigma = 0.0

    def truth(self, ids: Any, start: int, temperature: float) -> np.ndarray:
        logits = self.of.logits(tuple(map(int, ids)))[start - 1 : -1]
        noise = self.sigma * np.random.default_rng(self.scored).standard_normal(logits.shape)
        return log_softmax(logits + noise, temperature)


@pytest.mark.parametrize(("sigma", "teacher"), [(0.002, "demo"), pytest.param(0.01, "peaked", marks=pytest.mark.slow)])
async def test_an_honest_server_with_noise_passes_with_a_row_of_what_that_hides(sigma: float, teacher: str) -> None:
    server = Noisy(TEACHERS[teacher](), None, knows_temperature=True)
    server.sigma = sigma
    proof, _ = await prove(server, "sglang", 0.7)
    measured = {result.probe: result.measured for result in proof.results}["length"]
    assert "each moves the end" in measured or ("not shown for" in measured and "noise" in measured)


async def test_one_that_mixes_up_the_shorter_texts_of_a_batch_is_refused() -> None:
    class Mixed(Liar):
        async def _answer(self, writer: Any, path: str, body: dict[str, Any]) -> bool:
            self.under_way = [*getattr(self, "under_way", []), len(body.get("input_ids", ()))]
            await asyncio.sleep(0.01)
            self.padded = max(self.under_way) > len(body.get("input_ids", ()))
            answered = await super()._answer(writer, path, body)
            self.under_way = self.under_way[1:]
            return answered

        def truth(self, ids: Any, start: int, temperature: float) -> np.ndarray:
            return super().truth(ids, start, temperature * (1.3 if getattr(self, "padded", False) else 1.0))

    async with Mixed(TEACHERS["demo"](), None) as server:
        with pytest.raises(ContractError, match="alone, again and among others"):
            await asyncio.to_thread(check_teacher, f"sglang={server.url}", 1.0, vocabulary=server.vocabulary)


async def test_one_that_begins_to_lie_at_the_last_question_is_not_recorded() -> None:
    honest = Liar(TEACHERS["demo"](), None, knows_temperature=True)
    await prove(honest, "sglang", 0.7)
    late = Lie("baseline", logprobs=lambda z, t: log_softmax(z, 1.3), after=honest.scored - 1)
    with pytest.raises(ContractError, match="changed during the proof"):
        await prove(Liar(TEACHERS["demo"](), late, knows_temperature=True), "sglang", 0.7)


@pytest.mark.parametrize("context", [4, 8, pytest.param(20, marks=pytest.mark.slow), 65])
async def test_no_text_is_longer_than_the_server_takes(context: int) -> None:
    class Short(Liar):
        async def _answer(self, writer: Any, path: str, body: dict[str, Any]) -> bool:
            if len(body.get("input_ids", ())) > context:
                return await self._send(writer, 400, b"longer than the context")
            return await super()._answer(writer, path, body)

    async with Short(TEACHERS["demo"](), None, knows_temperature=True) as server:
        asked = asyncio.to_thread(check_teacher, f"sglang={server.url}", 0.7, vocabulary=server.vocabulary)
        if context >= 8:
            assert all(result.ok for result in await asked)
        else:
            with pytest.raises(ContractError, match="refuses texts of 8 tokens, the shortest that can be proven"):
                await asked


async def test_a_teacher_with_more_rows_than_tokens_is_told_to_give_their_number() -> None:
    class Padded(Pairs):
        all_special_ids = ()

        def get_vocab(self) -> dict[str, int]:
            return {str(token): token for token in range(1024)}

        def __len__(self) -> int:
            return 1024

    server = Liar(TEACHERS["flat"](), None)
    with pytest.raises(ContractError, match=r"more rows than these tokens .*--vocabulary"):
        await prove(server, "sglang", 1.0, tokenizer=Padded(), counted=False)


async def test_no_token_is_asked_about_that_the_vocabulary_may_not_have() -> None:
    """`limbeck check` with the student's tokenizer alone: ids below its highest; some servers do not survive others."""
    tokenizer = load_tokenizer("demo:teacher")
    async with Liar(TEACHERS["demo"](), None, tokenizer=lambda text: tokenizer(text).input_ids) as server:
        results = await asyncio.to_thread(check_teacher, f"sglang={server.url}", 1.0, tokenizer="demo:teacher")
        assert all(result.ok for result in results)
        asked = [body["input_ids"] for body in server.bodies if "input_ids" in body]
        assert max(max(ids) for ids in asked) < server.vocabulary
        assert len(server.bodies) < 80
