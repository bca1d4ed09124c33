"""An HTTP proxy on loopback that goes wrong in one way at a time, by a seed.

    proxy.arm(Plan(FAULTS["swap"], seed=3, rate=0.4))
    ... a run whose teacher is at proxy.url ...
    plan = proxy.disarm();  plan.hits, plan.altered

Whether a request is hit follows from the seed, the request and how often it was sent: not from timing. Every request
carries the name that `recorder` gave to this try; `altered` are those that did not get their own answer, whole.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from tests.chaos.faults import Fault, damaged
from tests.chaos.recorder import NAME

END = b"\r\n\r\n"
LATE = 0.15  # seconds of a delay
PARTNER = 0.1  # seconds that an answer waits for another one to be exchanged with
LONGEST = 5.0  # seconds for a server's answer: a damaged request may have it wait for the rest


@dataclass
class Plan:
    """One fault, and what came of it so far."""

    fault: Fault
    seed: int
    rate: float
    restart: Callable[[], None] | None = None  # kills the server and starts it again
    begins: bool = True  # whether it is time for the fault
    shown: bool = False  # whether the client knows that this server's answers carry digests
    hits: int = 0
    altered: dict[str, str] = field(default_factory=dict)  # name of the try -> what was delivered, for a person
    asked: Counter[str] = field(default_factory=Counter)  # how often a request was sent
    waiting: Waiting | None = None  # of a swap

    def rng(self, question: str) -> random.Random:
        self.asked[question] += 1
        return random.Random(f"{self.seed} {question} {self.asked[question]}")

    def hit(self) -> bool:
        """Whether there is one more to come; counts it."""
        if self.hits >= self.fault.most:
            return False
        self.hits += 1
        return True


@dataclass(frozen=True)
class Message:
    """A request or an answer, as bytes."""

    head: bytes
    body: bytes
    whole: bool = True  # False: it ended with its connection

    @property
    def bytes(self) -> bytes:
        return self.head + self.body

    @property
    def first_line(self) -> bytes:
        return self.head.partition(b"\n")[0].rstrip(b"\r")

    @property
    def route(self) -> bytes:
        return self.first_line.rpartition(b" ")[0]

    def header(self, name: str) -> str:
        for line in self.head.split(b"\n")[1:]:  # as clients and servers do: a line may have lost its CR to a fault
            key, _, value = line.partition(b":")
            if key.strip().lower() == name.encode():
                return value.strip().decode("latin-1")
        return ""

    def without(self, prefix: str) -> Message:
        lines = [line for line in self.head.split(b"\r\n") if not line.lower().startswith(prefix.encode())]
        return replace(self, head=b"\r\n".join(lines))

    @property
    def question(self) -> str:
        """What is asked, whichever try it is."""
        nonce = self.header("limbeck-nonce").encode()
        body = self.body.replace(nonce, b"") if nonce else self.body
        return hashlib.sha256(self.route + body).hexdigest()

    def says(self, bound: bool) -> tuple[object, ...]:
        """What must arrive unchanged. Of a request its line and body, of an answer its status and body; digests."""
        line = self.first_line.split(b" ")
        first = line[1] if line[0].startswith(b"HTTP/") and len(line) > 1 else self.route
        names = ("nonce", "request", "weights", "temperature", "answer") if bound else ()
        headers = (*(f"limbeck-{name}" for name in names), "authorization", "content-length")
        return first, self.body, *map(self.header, headers)


@dataclass(frozen=True)
class Waiting:
    """A request of which the answer waits for another one's, to be exchanged with it."""

    request: Message
    answer: Message
    theirs: asyncio.Future[Message]


class Proxy:
    """Between the clients and the server at port `target`; `other` is the port of one with another model.

    `bound`: its answers carry digests. Without them nothing tells an answer from another one of the same words, and
    only what would have been answered in other words counts as altered.
    """

    def __init__(self, target: int, other: int, bound: bool = True) -> None:
        self.target, self.other, self.bound, self.port = target, other, bound, 0
        self.plan: Plan | None = None
        self.earlier: list[tuple[str, bytes, Message]] = []  # question, route, answer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()

    def arm(self, plan: Plan) -> None:
        self.plan = plan

    def disarm(self) -> Plan:
        plan, self.plan = self.plan, None
        assert plan is not None
        return plan

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        last: Message | None = None  # an answer that comes once more
        try:
            while request := await _read(reader):
                plan = self.plan
                if plan is None:
                    answer = await self._ask(self.target, request)
                else:
                    answer, last = await self._disturb(plan, request, last, writer)
                writer.write(answer.bytes)
                await writer.drain()
                if not answer.whole:
                    break
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # one end went away, or a fault ends the connection
        finally:
            writer.transport.abort()

    async def _disturb(
        self, plan: Plan, request: Message, last: Message | None, writer: asyncio.StreamWriter
    ) -> tuple[Message, Message | None]:
        """The answer to deliver, and the one that is to come again on this connection."""
        name, rng = request.header(NAME), plan.rng(request.question)
        happens = rng.random() < plan.rate
        if last is not None:  # of "duplicate": this request gets the answer of the one before
            await self._note(plan, request, last, "the answer before")
            return last, None
        if not happens or not plan.begins or plan.hits >= plan.fault.most:
            answer = await self._ask(self.target, request)
            plan.shown = True
            return answer, None
        do: Callable[[Plan, Message, random.Random, str], Awaitable[Message]] = {
            "drop": self._drop, "delay": self._delay, "request bit": self._request_bit, "answer bit": self._answer_bit,
            "header": self._header, "swap": self._swap, "replay": self._replay, "reroute": self._reroute,
            "strip": self._strip, "restart": self._restart, "other model": self._restart,
        }.get(plan.fault.name, self._pass)  # fmt: skip
        if plan.fault.name in ("cut", "stall"):
            await self._break_off(plan, request, rng, writer)
        if plan.fault.name == "duplicate":
            return await self._duplicate(plan, request, rng)
        return await do(plan, request, rng, name), None

    async def _ask(self, port: int, request: Message) -> Message:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request.bytes)
            async with asyncio.timeout(LONGEST):
                answer = await _read(reader)
        finally:
            writer.transport.abort()
        if answer is None:
            raise ConnectionError("no answer")
        if port == self.target:
            self.earlier = [*self.earlier[-400:], (request.question, request.route, answer)]
        return answer

    async def _note(self, plan: Plan, request: Message, delivered: Message, what: str) -> Message:
        """That `delivered` is not the answer to `request`."""
        if self.bound or delivered.says(False) != (await self._ask(self.target, request)).says(False):
            plan.altered[request.header(NAME)] = what
        return delivered

    async def _pass(self, plan: Plan, request: Message, rng: random.Random, name: str) -> Message:
        return await self._ask(self.target, request)

    async def _drop(self, plan: Plan, request: Message, rng: random.Random, name: str) -> Message:
        if plan.hit():
            if rng.random() < 0.5:
                await self._ask(self.target, request)
            raise ConnectionError("dropped")
        return await self._ask(self.target, request)

    async def _delay(self, plan: Plan, request: Message, rng: random.Random, name: str) -> Message:
        plan.hit()
        await asyncio.sleep(LATE * rng.random())
        return await self._ask(self.target, request)

    async def _break_off(self, plan: Plan, request: Message, rng: random.Random, writer: asyncio.StreamWriter) -> None:
        """Part of the answer; then the connection ends, or nothing more comes."""
        data = (await self._ask(self.target, request)).bytes
        if not plan.hit():
            return
        writer.write(data[: rng.randrange(len(data))])
        await writer.drain()
        if plan.fault.name == "stall":
            await asyncio.sleep(LONGEST)  # longer than the client's patience
        raise ConnectionError("cut")

    async def _request_bit(self, plan: Plan, request: Message, rng: random.Random, name: str) -> Message:
        if not request.body or not plan.hit():
            return await self._ask(self.target, request)
        answer = await self._ask(self.target, replace(request, body=damaged(request.body, rng)))
        return await self._note(plan, request, answer, "an answer to a damaged request")

    async def _answer_bit(self, plan: Plan, request: Message, rng: random.Random, name: str) -> Message:
        answer = await self._ask(self.target, request)
        if not answer.body or not plan.hit():
            return answer
        plan.altered[name] = "a damaged answer"
        return replace(answer, body=damaged(answer.body, rng))

    async def _header(self, plan: Plan, request: Message, rng: random.Random, name: str) -> Message:
        plan.hit()
        if rng.random() < 0.5:
            sent = replace(request, head=damaged(request.head, rng))
            answer = await self._ask(self.target, sent)
            harm = sent.says(self.bound) != request.says(self.bound)
        else:
            sent = await self._ask(self.target, request)
            answer = replace(sent, head=damaged(sent.head, rng))
            harm = sent.says(self.bound) != answer.says(self.bound)
        return await self._note(plan, request, answer, "a damaged header") if harm else answer

    async def _swap(self, plan: Plan, request: Message, rng: random.Random, name: str) -> Message:
        """With the next one that is to be swapped on this route, if it comes in time."""
        ours, first = await self._ask(self.target, request), plan.waiting
        if first is None or first.request.route != request.route:
            plan.waiting = Waiting(request, ours, asyncio.get_running_loop().create_future())
            await asyncio.wait([theirs := plan.waiting.theirs], timeout=PARTNER)
            if theirs.done():
                return theirs.result()
            plan.waiting = None
            return ours
        plan.waiting = None
        if not plan.hit():
            return ours
        for one in (name, first.request.header(NAME)):
            plan.altered[one] = "the answer to another request"
        first.theirs.set_result(ours)
        return first.answer

    async def _duplicate(self, plan: Plan, request: Message, rng: random.Random) -> tuple[Message, Message | None]:
        plan.hit()
        if rng.random() < 0.3:
            await self._ask(self.target, request)  # the server gets it twice
            return await self._ask(self.target, request), None
        answer = await self._ask(self.target, request)
        return answer, answer

    async def _replay(self, plan: Plan, request: Message, rng: random.Random, name: str) -> Message:
        same = [answer for question, _, answer in self.earlier if question == request.question]
        others = [answer for _, route, answer in self.earlier if route == request.route]
        known = same if same and rng.random() < 0.7 else others
        if not known or not plan.hit():
            return await self._ask(self.target, request)
        what = "an earlier answer to the same request" if known is same else "an earlier answer"
        return await self._note(plan, request, rng.choice(known), what)

    async def _reroute(self, plan: Plan, request: Message, rng: random.Random, name: str) -> Message:
        if not plan.hit():
            return await self._ask(self.target, request)
        plan.altered[name] = "another model's answer"
        return await self._ask(self.other, request)

    async def _strip(self, plan: Plan, request: Message, rng: random.Random, name: str) -> Message:
        plan.hit()
        which = rng.choice(("request", "answer", "both"))
        sent = request if which == "answer" else request.without("limbeck-")
        answer = await self._ask(self.target, sent)
        plain = answer if which == "request" else answer.without("limbeck-")
        if plan.shown and (sent != request or plain != answer):
            plan.altered[name] = "an answer without its headers"
        return plain

    async def _restart(self, plan: Plan, request: Message, rng: random.Random, name: str) -> Message:
        if plan.restart is None or plan.asked.total() < 5 or not plan.hit():  # of a server that answered
            return await self._ask(self.target, request)
        await asyncio.get_running_loop().run_in_executor(None, plan.restart)
        raise ConnectionError("restarted")


async def _read(reader: asyncio.StreamReader) -> Message | None:
    """The next message; None at the end. One without a length ends with its connection."""
    with suppress(asyncio.IncompleteReadError):
        head = await reader.readuntil(END)
        message = Message(head, b"")
        length = message.header("content-length")
        if length.isdecimal():
            return Message(head, await reader.readexactly(int(length)))
        if message.first_line.startswith(b"HTTP/"):
            return Message(head, await reader.read(), whole=False)
        return message
    return None
