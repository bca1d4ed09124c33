"""What a session said so far, and where its next request goes on from.

    the request                                        goes on                             counted as
    an earlier history, its answer, then more          after the exact tokens of the answer   spliced
    the same as an earlier request                     after the same tokens as that          sibling
    anything else                                      nowhere: all of it is rendered afresh  segment, with its reason

A segment trains what is sampled in it; earlier answers in its history are context. Messages are compared as
`messages.digests` says, and a splice needs the template's consent: where it writes the history otherwise than when the
answer was sampled (thinking that it leaves out, tools that move), or the answer otherwise than it was said, the student
would see something else after all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from limbeck.gateway.messages import Message, canonical, content_key, digests
from limbeck.gateway.rendering import Chat, Renderer
from limbeck.gateway.tool_calls import parse
from limbeck.records import Ints, Sampled

Kind: TypeAlias = Literal["spliced", "sibling", "segment"]
Print: TypeAlias = tuple[int, bytes]  # of a text: its length and a digest
Words: TypeAlias = npt.NDArray[np.uint64]  # a digest of each message of a history

_THOUGHT = re.compile(r"<think>.*?</think>\s*|<think>\s*\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Said:
    """One sampled turn: the tokens before it, behind those of `parent`, and its own."""

    turn: int
    parent: Said | None
    context_ids: Ints
    sampled_ids: Ints
    stop: int | None  # the last token, where it ended the turn
    length: int  # tokens up to its end
    messages: Words | None = None  # of its history and itself; None: of the token route
    prompt: tuple[Print, Print] | None = None  # of the chat as it was rendered, with thinking and without
    cut: bool = False  # the agent was shown less of it than was sampled


@dataclass(frozen=True, slots=True)
class Plan:
    """What is put before the next turn."""

    kind: Kind
    context_ids: Ints
    parent: Said | None
    reason: str = ""  # of a segment after the first
    shown: Sequence[Message] = ()  # the messages that are new
    prompt: tuple[Print, Print] | None = None
    thinking: bool = False  # the template has begun the student's thinking

    @property
    def length(self) -> int:
        """Tokens before the next turn."""
        return len(self.context_ids) + (self.parent.length if self.parent else 0)

    @property
    def why(self) -> str:
        """In words, for whoever looks at the segment that begins here."""
        return "branched" if self.kind == "sibling" else self.reason

    def whole_ids(self) -> Ints:
        """All tokens before the next turn."""
        parts, said = [self.context_ids], self.parent
        while said is not None:
            parts += [said.sampled_ids, said.context_ids]
            said = said.parent
        return np.concatenate(parts[::-1])


@dataclass
class Conversation:
    """All turns of one session. `keep_thinking`: thinking that the template leaves out is no reason to begin anew."""

    renderer: Renderer
    keep_thinking: bool = False
    said: list[Said] = field(default_factory=list)
    _answers: dict[tuple[bytes, bytes], Said] = field(default_factory=dict)  # by history and tools; the latest
    _asked: dict[tuple[bytes, bytes], Plan] = field(default_factory=dict)
    _histories: set[bytes] = field(default_factory=set)  # of `_answers`, whatever the tools

    def plan(self, chat: Chat) -> Plan:
        """Raises `ApiError` where the chat cannot be rendered, or is longer than the context."""
        histories, setting = digests(chat.messages), _setting(chat)
        asked = self._asked.get((histories[-1], setting))
        if asked is not None:
            return replace(asked, kind="sibling")
        plan = self._new_plan(chat, histories, setting)
        self._asked[histories[-1], setting] = plan
        return plan

    def _new_plan(self, chat: Chat, histories: Sequence[bytes], setting: bytes) -> Plan:
        text = self.renderer.text(chat)
        reason = self._why_afresh(chat, histories)
        for count in range(len(histories), 0, -1):
            said = self._answers.get((histories[count - 1], setting))
            if said is not None:
                found = self._splice(chat, count, said, text)
                if isinstance(found, Plan):
                    return found
                reason = found
                break
        self.renderer.check_room(text, 0)
        ids = np.array(self.renderer.encode_whole(text), dtype=np.int64)
        return Plan("segment", ids, None, reason, chat.messages, _prints(text), _thinks(text))

    def _splice(self, chat: Chat, count: int, said: Said, text: str) -> Plan | str:
        """The plan that goes on after `said`, which is message `count - 1`; or why there is none."""
        if said.cut:
            return "answer cut"
        assert said.prompt is not None
        answer, bare = chat.messages[count - 1], _bare(text)
        rest = _rest(text, said.prompt[0], answer["content"])
        stripped = rest is None
        if rest is None:
            answer = answer | {"content": answer["content"].rpartition("</think>")[2]}
            rest = _rest(bare, said.prompt[1], answer["content"])
        if rest is None:
            return "template rewrote"
        if stripped and not self.keep_thinking:
            return "thinking stripped"
        stop = "" if said.stop is None else self.renderer.decode([said.stop])
        after = self.renderer.after_answer(chat, count - 1, stop)
        if after is None or not text.endswith(after):
            return "template rewrote"
        end = _bare(after) if stripped else _without_blanks(after)
        written = rest.removesuffix(end).removesuffix(_without_blanks(stop))
        if not rest.endswith(end) or not self._says(written, answer, chat):
            return "template rewrote"
        self.renderer.check_room(after, said.length)
        ids = np.array(self.renderer.encode(after, said.stop), dtype=np.int64)
        return Plan("spliced", ids, said, "", chat.messages[count:], (_print(text), _print(bare)), _thinks(text))

    def _says(self, written: str, answer: Message, chat: Chat) -> bool:
        """Whether the template's writing of an answer, which has no blanks, says what the answer does."""
        calls = [(call["function"]["name"], call["function"]["arguments"]) for call in answer.get("tool_calls", ())]
        if not calls:
            return written == _without_blanks(answer["content"])
        parsed = parse(self.renderer.tool_format or "hermes", written, chat.tools)
        content = _without_blanks(answer["content"])
        return (parsed.content, parsed.beside) == (content, "") and _spelled(parsed.calls) == _spelled(calls)

    def _why_afresh(self, chat: Chat, histories: Sequence[bytes]) -> str:
        """In words, for a chat that goes on from no answer under the same tools."""
        if not self.said:
            return ""
        if any(history in self._histories for history in histories):
            return "tools changed"
        mine = _words(chat.messages)
        for said in reversed(self.said):
            if said.messages is not None and said.messages[-1] in mine:
                kept = mine[: np.flatnonzero(mine == said.messages[-1])[-1] + 1]
                return "history shortened" if _is_part(kept, said.messages) else "history edited"
        return "new conversation"

    def plan_tokens(self, asked: Sequence[int]) -> Plan:
        """Where token ids go on from: the longest sequence said so far that they begin with."""
        ids = np.array(asked, dtype=np.int64)
        best: Said | None = None
        for said in self.said:
            if said.length <= len(ids) and (best is None or said.length > best.length) and _begins(ids, said):
                best = said
        rest = ids[best.length if best else 0 :]
        if any(one.parent is best and np.array_equal(one.context_ids, rest) for one in self.said):
            return Plan("sibling", rest, best, "" if best or not self.said else "new conversation")
        if best is not None:
            return Plan("spliced", rest, best)
        return Plan("segment", rest, None, "new conversation" if self.said else "")

    def add(self, plan: Plan, sampled: Sampled, stop: int | None, chat: Chat | None = None, cut: bool = False) -> None:
        """Notes what was sampled. `chat` has the answer as its last message, as the agent was shown it."""
        words = None if chat is None else _words(chat.messages)
        ids, length = sampled.token_ids, plan.length + len(sampled.token_ids)
        said = Said(sampled.turn, plan.parent, plan.context_ids, ids, stop, length, words, plan.prompt, cut)
        self.said.append(said)
        if chat is not None:
            history = digests(chat.messages)[-1]
            self._answers[history, _setting(chat)] = said
            self._histories.add(history)


def _setting(chat: Chat) -> bytes:
    """What else the template is given."""
    return canonical([list(chat.tools), dict(chat.options or {})])


def _begins(ids: Ints, said: Said) -> bool:
    """Whether `ids` begin with a turn and all before it."""
    one: Said | None = said
    while one is not None:
        start = one.length - len(one.sampled_ids)
        before = start - len(one.context_ids)
        if not (
            np.array_equal(ids[start : one.length], one.sampled_ids)
            and np.array_equal(ids[before:start], one.context_ids)
        ):
            return False
        one = one.parent
    return True


def _rest(text: str, prompt: Print, content: str) -> str | None:
    """What follows the prompt of an answer in a rendered chat, without blanks: templates trim them.

    None unless it begins as it did when the answer was sampled, and goes on with the answer.
    """
    if _print(text[: prompt[0]]) != prompt:
        return None
    rest = _without_blanks(text[prompt[0] :])
    return rest if rest.startswith(_without_blanks(content)) else None


def _spelled(calls: Iterable[tuple[str, Mapping[str, Any]]]) -> list[list[str]]:
    """Calls without blanks. Templates write a flag as true or as True: it is the same."""
    return [[name, *sorted(_without_blanks(f"{key}={value}") for key, value in given.items())] for name, given in calls]


def _without_blanks(text: str) -> str:
    return "".join(text.split())


def _bare(text: str) -> str:
    """A rendered chat without its thinking, nor a beginning of it at the end, and without blanks."""
    return _without_blanks(_THOUGHT.sub("", text))


def _prints(text: str) -> tuple[Print, Print]:
    return _print(text), _print(_bare(text))


def _thinks(text: str) -> bool:
    return text.rstrip().endswith("<think>")


def _print(text: str) -> Print:
    return len(text), blake2b(text.encode(), digest_size=16).digest()


def _words(messages: Sequence[Message]) -> Words:
    keys = [blake2b(content_key(message), digest_size=8).digest() for message in messages]
    return np.frombuffer(b"".join(keys), dtype=np.uint64)


def _is_part(some: Words, all_: Words) -> bool:
    """Whether `some` come in this order among `all_`."""
    remaining = iter(all_.tolist())
    return all(one in remaining for one in some.tolist())
