"""Whether a chat template shows what a chat says, and in which shape it takes it: as text, or as parts.

    fitted = ShownContents(tokenizer).fitted(chat)      the messages, as the template takes them

Templates of models that see images often take `[{"type": "text", "text": ...}]` and print nothing of a text; others
print a list as Python writes it, or drop the roles that they do not know. All that is found out by rendering
placeholders in the places of the contents, once for each order of roles.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from limbeck.errors import DataError
from limbeck.models.chat import Message, chat_text, name_of
from limbeck.records import Chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("limbeck")
TOOLS = -1  # in the place of a message's index


class ShownContents:
    """Of one tokenizer's template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._in_parts: dict[tuple[object, ...], bool] = {}
        self._warned: set[str] = set()

    def fitted(self, chat: Chat, *more: Message) -> list[Message]:
        """The chat's messages as the template takes them, and `more` after them in the same shape.

        Raises `DataError` where the template leaves out the system message, the last message or the tools."""
        key = (*((message["role"], bool(message.get("content"))) for message in chat.messages), bool(chat.tools))
        if key not in self._in_parts:
            self._in_parts[key] = self._examine(chat)
        messages = [*chat.messages, *more]
        return in_parts(messages) if self._in_parts[key] else messages

    def _examine(self, chat: Chat) -> bool:
        """Whether contents are taken in parts."""
        hidden = {parts: self._hidden(chat, parts) for parts in (False, True)}
        known = {parts: found for parts, found in hidden.items() if found is not None}
        if not known:
            return False  # it refuses placeholders either way: it will say what it refuses
        parts = min(known, key=lambda parts: (len(known[parts]), parts))
        self._check(chat, known[parts])
        return parts

    def _hidden(self, chat: Chat, parts: bool) -> list[int] | None:
        """Which messages are not shown, and `TOOLS`; None where the template refuses them in this shape."""
        replaced = [
            {**message, "content": _placeholder(index)} if message.get("content") else message
            for index, message in enumerate(chat.messages)
        ]
        replaced = in_parts(replaced) if parts else replaced
        try:
            text = chat_text(self.tokenizer, replaced, chat.tools, chat.options, not chat.continued)
            without = chat_text(self.tokenizer, replaced, None, chat.options, not chat.continued) if chat.tools else ""
        except DataError:
            return None
        shown = text.casefold()
        hidden = [
            i for i, message in enumerate(chat.messages) if message.get("content") and _placeholder(i) not in shown
        ]
        return [*hidden, TOOLS] if chat.tools and text == without else hidden

    def _check(self, chat: Chat, hidden: Sequence[int]) -> None:
        name = name_of(self.tokenizer)
        if TOOLS in hidden:
            raise DataError(
                f"the row has tools, but the chat template of {name} does not show them to the "
                "model. Take a model whose template does, or point task.columns.tools at a column that is not there."
            )
        for index in hidden:
            role = chat.messages[index]["role"]
            what = f"the chat template of {name} does not show message {index}, of role {role!r}, to the model"
            if role == "system" or index == len(chat.messages) - 1:
                raise DataError(f"{what}. Take a model whose template does, or remove that message.")
            if role not in self._warned:
                logger.warning("%s, where roles are %s", what, [message["role"] for message in chat.messages])
            self._warned.add(role)


def in_parts(messages: Sequence[Message]) -> list[Message]:
    """Contents that are text, as lists of one part.

    >>> in_parts([{"role": "user", "content": "a"}])
    [{'role': 'user', 'content': [{'type': 'text', 'text': 'a'}]}]
    """
    return [_in_parts(message) for message in messages]


def _in_parts(message: Message) -> Mapping[str, Any]:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def _placeholder(index: int) -> str:
    return f"limbeck{index}mark"
