"""From chats to tokens: what a whole chat is, and what follows an answer whose tokens are kept.

An answer is never rendered to find out what comes after it. It is replaced by a placeholder, and what stands after
that in the rendered chat follows the sampled tokens, without an end of turn that the student sampled itself:

    <user>12+34=<assistant>PLACEHOLDER<end>\\n<user>And 5+6?<assistant>
    46<end> was sampled, so what follows is             \\n<user>And 5+6?<assistant>
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from limbeck.errors import DataError
from limbeck.gateway.api_errors import ApiError, invalid, unsupported
from limbeck.gateway.messages import Message, canonical, tool_call
from limbeck.gateway.tool_prompt import in_words
from limbeck.models.chat import chat_text, name_of
from limbeck.models.text import Names, highest_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("limbeck")
PLACEHOLDER = "LimbeckMark7Q2"  # one word that nobody writes: templates trim blanks, and look for tags
PIECE = 2**16  # characters of a long text that are counted at a time
CUT = 16  # tokens by which a cut between two pieces may change their number, at most


@dataclass(frozen=True, slots=True)
class Chat:
    """What a template is given."""

    messages: list[Message]
    tools: Sequence[Mapping[str, Any]] = ()
    options: Mapping[str, Any] | None = None

    def first(self, count: int) -> Chat:
        return replace(self, messages=self.messages[:count])


class Renderer:
    """The student's tokenizer and template. Only one thread may use it: tokenizers are not safe in several.

    `context` tokens are the most that a prompt may have, with room for one more; None: no limit. `tool_format`: how the
    template writes calls; None: in no way that is known.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        context: int | None = None,
        options: Mapping[str, Any] | None = None,
        tool_format: str | None = "hermes",
    ) -> None:
        self.tokenizer, self.context, self.options = tokenizer, context, dict(options or {})
        self._tool_format = tool_format
        self.names = Names(tokenizer)
        self._arguments_are_text = False

    def text(self, chat: Chat, generation_prompt: bool = True) -> str:
        """The chat as the template writes it. Raises `ApiError` where it refuses it."""
        if not self.tokenizer.chat_template:
            raise unsupported(
                f"the tokenizer {name_of(self.tokenizer)} has no chat template, so there are no chats: send token "
                "ids to /inference/v1/generate, or distil a model with a template",
                "messages",
            )
        if not self._shows_text:
            raise unsupported(
                f"the chat template of {name_of(self.tokenizer)} does not show the text of a message: it wants "
                "contents in parts, and the student reads text alone. Distil a model whose template takes text",
                "messages",
            )
        has_calls = any(message.get("tool_calls") for message in chat.messages)
        if (chat.tools and not self.shows_tools) or (has_calls and not self._shows_calls):
            chat = replace(chat, messages=in_words(chat.messages, chat.tools), tools=())
        text = self._written(chat, generation_prompt)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise invalid("a tool or a call has half of a surrogate pair: no tokenizer reads it") from None
        return text

    def _written(self, chat: Chat, generation_prompt: bool) -> str:
        options = self.options | dict(chat.options or {})
        messages = _with_text_arguments(chat.messages) if self._arguments_are_text else chat.messages
        try:
            return chat_text(self.tokenizer, messages, chat.tools, options, generation_prompt)
        except DataError as error:
            raise invalid(str(error), "messages") from None

    def _probe(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> str | None:
        """A chat as the template writes it, behind a system message if it must be; None where it refuses both."""
        for first in ([], [{"role": "system", "content": "a"}]):
            with suppress(ApiError):
                return self._written(Chat([*first, *messages], tools), True)
        return None

    @cached_property
    def _shows_text(self) -> bool:
        text = self._probe([{"role": "user", "content": PLACEHOLDER}])
        return text is None or PLACEHOLDER in text

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the template writes tools into the prompt. Where it does not, they are put in words."""
        function = {"name": PLACEHOLDER, "description": "a", "parameters": {"type": "object", "properties": {}}}
        text = self._probe([{"role": "user", "content": "a"}], [{"type": "function", "function": function}])
        shows = text is None or PLACEHOLDER in text
        if not shows:
            logger.warning(
                "the chat template of %s does not show tools: they are described in a system message, calls are "
                "written as <tool_call>{...}</tool_call>", name_of(self.tokenizer),
            )  # fmt: skip
        return shows

    @property
    def tool_format(self) -> str | None:
        """How the student writes tool calls. None: in no way that is known."""
        return self._tool_format if self.shows_tools else "hermes"

    @cached_property
    def _shows_calls(self) -> bool:
        """Found with arguments as a table, as most templates want them, or else as text."""
        call = tool_call("c00000000", "a", {PLACEHOLDER: PLACEHOLDER})
        asked = {"role": "user", "content": "a"}
        answered = {"role": "tool", "content": "a", "tool_call_id": "c00000000", "name": "a"}
        for self._arguments_are_text in (False, True):
            text = self._probe([asked, {"role": "assistant", "content": "", "tool_calls": [call]}, answered])
            if text is not None and PLACEHOLDER in text:
                return True
        self._arguments_are_text = False
        return False

    def after_answer(self, chat: Chat, index: int, stop: str) -> str | None:
        """What follows the student's own words in message `index`. `stop`: the end of turn that it said itself, or "".

        None where the template does not let that be seen: it left the message out, wrote it elsewhere or twice, or
        wrote something between the words and that end.
        """
        placeholder = _unused_placeholder(chat.messages)
        answer = _with_placeholder(chat.messages[index], placeholder)
        replaced = replace(chat, messages=[*chat.messages[:index], answer, *chat.messages[index + 1 :]])
        calls, written = answer.get("tool_calls", ()), self.text(replaced)
        if written.count(placeholder) != (2 * len(calls) or 1):
            return None
        after = written.rpartition(placeholder)[2]
        try:
            if calls:
                return self._without_closing(after, replaced.first(index + 1), stop, placeholder)
            if stop and stop in after and not _begins_with(stop, after):
                end = self._end(replaced.first(index + 1), placeholder)
                if end is None or stop in end:
                    return None
        except ApiError:  # the template takes no chat that ends there
            return None
        return _without_stop(stop, after)

    def _end(self, replaced: Chat, placeholder: str) -> str | None:
        """How the template ends the last message, behind the placeholder in it."""
        _, found, end = self.text(replaced, generation_prompt=False).rpartition(placeholder)
        return end if found else None

    def _without_closing(self, after: str, called: Chat, stop: str, placeholder: str) -> str | None:
        """`after` without the rest of the syntax of a call, which the student wrote itself, and without its end."""
        said = [*called.messages[:-1], {"role": "assistant", "content": placeholder}]
        end, plain = self._end(called, placeholder), self._end(replace(called, messages=said), placeholder)
        if end is None or plain is None or not after.startswith(end):
            return None
        if stop and stop in end:
            early = stop in plain and not _begins_with(stop, plain)
            return None if early else _without_stop(stop, after[end.index(stop) :])
        return after[len(end) - len(plain) :] if end.endswith(plain) else None

    def encode(self, text: str, after: int | None = None) -> list[int]:
        """The tokens of a text, as they are behind the token `after` where that is a special one."""
        anchor = after if after is not None and self._is_anchor(after) else self._anchor
        if anchor is None:
            return self._ids(text)
        ids = self._ids(self.decode([anchor]) + text)
        return ids[1:] if ids[0] == anchor else self._ids(text)

    def encode_whole(self, text: str) -> list[int]:
        """The tokens of a chat from its beginning."""
        return self._ids(text)

    def _ids(self, text: str) -> list[int]:
        encoded = self.tokenizer(
            text, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
        )
        return [int(token) for token in encoded["input_ids"]]

    @cached_property
    def _anchor(self) -> int | None:
        """A special token that takes no blanks after it with it. Nothing is the beginning of a text behind one."""
        for id_ in self._special:
            if self._is_anchor(id_) and self._ids(self.decode([id_]) + "\n") != [id_]:
                return id_
        return None

    def _is_anchor(self, id_: int) -> bool:
        return id_ in self._special and self._ids(self.decode([id_])) == [id_]

    def decode(self, ids: Sequence[int]) -> str:
        """With special tokens in it."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    @cached_property
    def _special(self) -> dict[int, str]:
        added = {id_: str(token) for id_, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return added | {id_: self.decode([id_]) for id_ in self.tokenizer.all_special_ids}

    def without_special(self, text: str) -> str:
        """What an agent is shown: a control token that it sent back as text would become one again."""
        for token in self._special.values():
            text = text.replace(token, "")
        return text

    def check_room(self, text: str, before: int) -> None:
        """Raises `ApiError` for a text that does not fit behind `before` tokens. Not all of a long one is tokenized."""
        if self.context is None:
            return
        if len(text) > self._longest * self.context:
            raise self.too_long(f"{len(text)} characters")
        count = before
        if len(text) > PIECE:
            for start in range(0, len(text), PIECE):
                count += max(0, len(self._ids(text[start : start + PIECE])) - CUT)
                if count >= self.context:
                    raise self.too_long(f"more than {count} tokens")

    def too_long(self, found: str) -> ApiError:
        return ApiError(
            400,
            "context_length_exceeded",
            f"This model's maximum context length is {self.context} tokens. However, your messages resulted in "
            f"{found}. Please reduce the length of the messages.",
            "messages",
            limit=True,
        )

    @cached_property
    def highest_id(self) -> int:
        return highest_id(self.tokenizer)

    @cached_property
    def _longest(self) -> int:
        """Characters that one token can stand for, at most."""
        return max(map(len, self.tokenizer.get_vocab()))


def _unused_placeholder(messages: Sequence[Message]) -> str:
    written, placeholder = canonical(messages).decode(), PLACEHOLDER
    while placeholder in written:
        placeholder += "x"
    return placeholder


def _with_placeholder(answer: Message, placeholder: str) -> Message:
    calls = answer.get("tool_calls")
    if not calls:
        return {"role": "assistant", "content": placeholder}
    replaced = [tool_call(call["id"], call["function"]["name"], {placeholder: placeholder}) for call in calls]
    return {"role": "assistant", "content": answer["content"], "tool_calls": replaced}


def _begins_with(stop: str, text: str) -> bool:
    """Blanks aside: templates put some before an end."""
    before, found, _ = text.partition(stop)
    return bool(found) and not before.strip()


def _without_stop(stop: str, after: str) -> str:
    return after.partition(stop)[2] if stop and _begins_with(stop, after) else after


def _with_text_arguments(messages: Sequence[Message]) -> list[Message]:
    return [
        message | {"tool_calls": [_with_text(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _with_text(call: Message) -> Message:
    function = call["function"]
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return call | {"function": function | {"arguments": text}}
