"""One rollout behind the gateway: requests in, turns sampled, what the agent is shown out."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from limbeck.formatting import shown
from limbeck.gateway.answers import Choice, completion, ended_by, events, read_choice, token_answer
from limbeck.gateway.api_errors import ApiError, invalid, unsupported
from limbeck.gateway.conversation import Conversation, Plan
from limbeck.gateway.messages import spoken_by
from limbeck.gateway.rendering import Renderer
from limbeck.gateway.report import SessionReport
from limbeck.gateway.requests import ChatRequest, Wanted, read_chat, read_tokens
from limbeck.protocols import Generate
from limbeck.records import Context, Failure, Sampled

logger = logging.getLogger("limbeck")
T = TypeVar("T")
R = TypeVar("R")
SHOWN = 4000  # characters of a context that are kept for people


@dataclass
class Desk:
    """What all sessions share: the student's tokenizer, in a thread of its own, and what was said about it."""

    renderer: Renderer
    thread: Executor
    model: str
    keep_thinking: bool = False
    reported: set[str] = field(default_factory=set)  # settings whose override was reported

    async def work(self, function: Callable[..., T], *arguments: Any) -> T:
        """Rendering and tokenizing may take long: not in the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, function, *arguments)

    def report_overrides(self, overridden: Mapping[str, Any]) -> None:
        """Once each, however many agents ask."""
        new = {name: value for name, value in overridden.items() if name not in self.reported}
        if new:
            self.reported |= set(new)
            asked = ", ".join(f"{name} = {shown(value, 40)}" for name, value in new.items())
            logger.warning("agents ask for %s; the recipe's own sampling stands", asked)


class GatewaySession:
    """The turns of one `Generate`. Its methods answer one request each, and raise `ApiError`."""

    def __init__(self, id: str, key: str, name: str, generate: Generate, desk: Desk) -> None:
        self.id, self.key, self.name = id, key, name
        self.report = SessionReport()
        self.closed = False
        self._generate, self._desk = generate, desk
        self._conversation = Conversation(desk.renderer, desk.keep_thinking)
        self._planning = asyncio.Lock()  # the second of two requests sees what the first began
        self._under_way: set[asyncio.Task[Any]] = set()

    async def answer(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` gives, unless the session ends before. Errors are counted."""
        if self.closed:
            work.close()
            raise self._ended()
        task = asyncio.create_task(work)
        self._under_way.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if not self.closed:
                raise
            raise self._ended() from None
        except ApiError as error:
            self.refuse(error)
            raise
        except Exception as error:  # a template that does not end, or a mistake of ours: this rollout's alone
            failed = ApiError(500, "internal_error", f"{type(error).__name__}: {error}")
            self.refuse(failed)
            raise failed from error
        finally:
            task.cancel()
            self._under_way.discard(task)

    def close(self) -> None:
        self.closed = True
        for task in self._under_way:
            task.cancel()

    def refuse(self, error: ApiError) -> None:
        """Counts a request that was refused."""
        self.report.errors[error.code] += 1
        if self.report.failure is None and not error.limit:
            self.report.failure = Failure(self.name, "run", error.code, error.message)

    async def chat(self, body: bytes) -> dict[str, Any] | Iterator[bytes]:
        """`/v1/chat/completions`: an object, or the events of a stream."""
        request, plan = await self._planned(self._read_chat, body)
        choices = await self._all(plan, request.wanted, lambda one: self._choice(request, one))
        name = f"chatcmpl-{self.id}-{choices[0].sampled.turn}"
        write = events if request.stream else completion
        return write(name, self._desk.model, request, plan.whole_ids(), choices)

    async def tokens(self, body: bytes) -> dict[str, Any]:
        """`/inference/v1/generate`: token ids in and out."""
        wanted, plan = await self._planned(self._read_tokens, body)
        choices = await self._all(plan, wanted, lambda one: self._turn(one, wanted))
        for sampled in choices:
            await self._desk.work(self._conversation.add, plan, sampled, ended_by(sampled, self._stop_ids))
        return token_answer(f"{self.id}-{choices[0].turn}", choices)

    async def _planned(self, read: Callable[[bytes], tuple[R, Plan]], body: bytes) -> tuple[R, Plan]:
        self.report.requests += 1
        async with self._planning:
            return await self._desk.work(read, body)

    def _read_chat(self, body: bytes) -> tuple[ChatRequest, Plan]:
        request = read_chat(_json(body), [self._desk.model], self._generate.sampling)
        plan = self._fitting(self._conversation.plan(request.chat))
        if request.parse_calls and self._desk.renderer.tool_format is None:
            raise unsupported(
                "how the student writes tool calls cannot be seen from its chat template: name the format in the "
                "recipe (tool_format), or send tool_choice = 'none'",
                "tools",
            )
        return request, plan

    def _read_tokens(self, body: bytes) -> tuple[Wanted, Plan]:
        ids, wanted = read_tokens(_json(body), [self._desk.model], self._generate.sampling)
        plan = self._conversation.plan_tokens(ids)
        new, highest = plan.context_ids, self._desk.renderer.highest_id
        if len(new) and new.max() > highest:  # the student itself may have said ids above: its head has padding
            raise invalid(
                f"token_ids has {new.max()}, but the student's tokenizer ends at {highest}: has the client another?",
                "token_ids",
            )
        return wanted, self._fitting(plan)

    def _fitting(self, plan: Plan) -> Plan:
        context = self._desk.renderer.context
        if context is not None and plan.length >= context:
            raise self._desk.renderer.too_long(f"{plan.length} tokens")
        return plan

    async def _all(self, plan: Plan, wanted: Wanted, one: Callable[[Plan], Awaitable[T]]) -> list[T]:
        """The turns of one request, sampled at the same time. All but the first are siblings of it."""
        self.report.overridden.update(wanted.overridden.keys())
        self._desk.report_overrides(wanted.overridden)
        self.report.count(plan.kind, plan.reason, wanted.n)
        plans = [plan, *[replace(plan, kind="sibling")] * (wanted.n - 1)]
        return list(await asyncio.gather(*map(one, plans)))

    async def _choice(self, request: ChatRequest, plan: Plan) -> Choice:
        sampled = await self._turn(plan, request.wanted)
        choice: Choice = await self._desk.work(self._read_choice, request, plan, sampled)
        self.report.malformed += choice.malformed
        return choice

    def _read_choice(self, request: ChatRequest, plan: Plan, sampled: Sampled) -> Choice:
        renderer = self._desk.renderer
        choice = read_choice(
            renderer, request, plan.thinking, sampled, self._stop_ids, renderer.tool_format or "hermes"
        )
        chat = replace(request.chat, messages=[*request.chat.messages, choice.message])
        self._conversation.add(plan, sampled, choice.stop, chat, choice.cut)
        return choice

    async def _turn(self, plan: Plan, wanted: Wanted) -> Sampled:
        """Raises `ApiError` where it cannot be sampled."""
        context, longest = self._desk.renderer.context, self._generate.sampling.max_tokens
        room = longest if context is None else context - plan.length
        limit = min(room, longest if wanted.max_tokens is None else wanted.max_tokens)
        role, text = spoken_by(plan.shown)
        parent = None if plan.parent is None else plan.parent.turn
        shown_before = Context(
            plan.context_ids, parent, plan.why, role, text[:SHOWN], limit if limit < longest else None
        )
        try:
            sampled = await self._generate(shown_before)
        except Exception as error:  # the run's own trouble: whoever opened the session raises it again
            self.report.raised = error
            raise ApiError(500, "sampling_failed", f"the student could not be sampled: {error}") from error
        if isinstance(sampled, Failure):
            raise self._not_sampled(sampled)
        self.report.turns += 1
        return sampled

    def _not_sampled(self, failure: Failure) -> ApiError:
        if failure.kind == "context_length":
            message = f"This model's maximum context length is reached: {failure.message}"
            return ApiError(400, "context_length_exceeded", message, limit=True)
        if failure.stage == "run":  # another limit of the episode
            return ApiError(400, failure.kind, failure.message, limit=True)
        self.report.failure = self.report.failure or failure
        return ApiError(500, failure.kind, failure.message)

    @property
    def _stop_ids(self) -> tuple[int, ...]:
        return self._generate.sampling.stop_ids

    def _ended(self) -> ApiError:
        return ApiError(410, "session_ended", f"session {self.id} has ended: nothing is sampled for it any more")


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is no JSON: {error}") from None
