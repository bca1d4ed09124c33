"""Text or chat into the tokens of a prompt, and the check that they leave room for an answer.

    encoder = Encoder(tokenizer, chat=True, system="Be brief.")
    encoder.text("12+34=")      the tokens of "<system>Be brief.<user>12+34=<assistant>"

Only `apply_chat_template` writes the chat's control tokens; text without a template is tokenized as
the tokenizer does by itself, with the special tokens it adds to raw text.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from limbeck.errors import DataError
from limbeck.models.chat import Message, chat_ids, name_of
from limbeck.records import Chat, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("limbeck")


class Encoder:
    """Turns what a row says into token ids.

    Raises `DataError` where a system message is asked for and there is no chat template to put it in.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat: bool, system: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.has_template = bool(tokenizer.chat_template)
        self.chat = chat and self.has_template
        self.system = system
        self._shows_tools: bool | None = None  # unknown until the first prompt with tools
        if system is not None and not self.has_template:
            raise DataError(
                f"task.system = {system!r} needs a chat template, and the tokenizer "
                f"{name_of(tokenizer)} has none. Remove task.system, or take a model with a chat template."
            )
        check_unicode("task.system", system)

    def chat_of(self, shown: str | Sequence[Message], tools: Sequence[Message] | None = None) -> Chat | None:
        """What `text` or `messages` renders; None for raw text."""
        if isinstance(shown, str):
            if not self.chat:
                return None
            shown = [{"role": "user", "content": shown}]
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return Chat((*system, *shown), tuple(tools or ()))

    def text(self, text: str, tools: Sequence[Message] | None = None) -> list[int]:
        """One user message where chat is on and there is a template, else raw text."""
        if self.chat:
            return self.messages([{"role": "user", "content": text}], tools)
        if self.system is not None:
            raise DataError(
                f"task.system = {self.system!r} needs a chat to stand in, but task.chat = false. "
                "Set task.chat = true, or remove task.system."
            )
        if tools:
            raise DataError(
                "the row has tools, which a chat template writes into the prompt, but this prompt is raw text. Give "
                "messages, take a model with a chat template and task.chat = true, or point task.columns.tools at a "
                "column that is not there."
            )
        return [int(token) for token in self.tokenizer(text)["input_ids"]]

    def messages(self, messages: Sequence[Message], tools: Sequence[Message] | None = None) -> list[int]:
        """A chat, up to and including the header of the answer that is wanted."""
        if not self.has_template:
            raise DataError(
                f"messages need a chat template, and the tokenizer {name_of(self.tokenizer)} has none. "
                "Give a `prompt` column of plain text, or take a model with a chat template."
            )
        if self.system is not None:
            if messages[0]["role"] == "system":
                raise DataError(
                    "the messages already begin with a system message, and task.system = "
                    f"{self.system!r} would put a second one before it. Remove one of the two."
                )
            messages = [{"role": "system", "content": self.system}, *messages]
        ids = chat_ids(self.tokenizer, messages, tools)
        if tools and self._shows_tools is None:
            self._shows_tools = ids != chat_ids(self.tokenizer, messages)
        if tools and not self._shows_tools:
            raise DataError(
                f"the row has tools, but the chat template of {name_of(self.tokenizer)} does not show them to the "
                "model. Take a model whose template does, or point task.columns.tools at a column that is not there."
            )
        return ids


def check_unicode(name: str, value: Any) -> None:
    """Raises `DataError` for a lone surrogate anywhere in a text, or in the texts of a list or table.

    JSON can spell half of a surrogate pair. No tokenizer can read it, and no file or request can hold it.
    """
    pending = [(name, value)]
    while pending:
        name, value = pending.pop()
        if isinstance(value, Mapping):
            pending += [(f"a key of {name}", key) for key in value]
            pending += [(f"{name}.{key!s}", part) for key, part in value.items()]
        elif isinstance(value, list | tuple):
            pending += [(f"{name}[{index}]", part) for index, part in enumerate(value)]
        elif isinstance(value, str):
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:
                raise DataError(
                    f"{name!a} has a lone surrogate {value[error.start]!r} at character {error.start}, which is not a "
                    "Unicode character. Repair the row, or remove it."
                ) from None


def fit(
    prompts: Iterable[Prompt],
    longest: int | None,
    too_long: Literal["error", "drop"],
    may_drop: bool = True,
) -> list[Prompt]:
    """The prompts of at most `longest` tokens, in order.

    Raises `DataError` naming the first that is longer, unless `too_long` is "drop", and where none
    is left. `may_drop` says whether the task has such a setting to recommend.
    """
    prompts = list(prompts)
    if longest is None:
        return prompts
    kept = [prompt for prompt in prompts if len(prompt.token_ids) <= longest]
    if len(kept) == len(prompts):
        return kept
    remedies = "Shorten the prompts, or lower rollout.max_tokens"
    worst = next(prompt for prompt in prompts if len(prompt.token_ids) > longest)
    if too_long == "error":
        raise DataError(
            f"prompt {worst.id!r} has {len(worst.token_ids)} tokens, but at most {longest} leave room for "
            f"rollout.max_tokens in the context; {len(prompts) - len(kept)} of {len(prompts)} prompts are "
            f"too long. {remedies}" + (', or set task.too_long = "drop".' if may_drop else ".")
        )
    if not kept:
        raise DataError(
            f"all {len(prompts)} prompts are longer than {longest} tokens, the most that leaves room for "
            f"rollout.max_tokens in the context (the first, {worst.id!r}, has {len(worst.token_ids)}), and "
            f'task.too_long = "drop" leaves none. {remedies}.'
        )
    logger.warning(
        "dropped %d of %d prompts longer than %d tokens (the first is %r, of %d)",
        len(prompts) - len(kept), len(prompts), longest, worst.id, len(worst.token_ids),
    )  # fmt: skip
    return kept
