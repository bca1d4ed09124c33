"""Text or chat into the tokens of a prompt, and the check that they leave room for an answer.

    encoder = Encoder(tokenizer, chat=True, system="Be brief.")
    encoder.text("12+34=")      the tokens of "<system>Be brief.<user>12+34=<assistant>"

Only `apply_chat_template` writes the chat's control tokens; text without a template is tokenized as
the tokenizer does by itself, with the special tokens it adds to raw text.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from limbeck.errors import DataError
from limbeck.models.chat import Message, chat_ids, check_options, name_of
from limbeck.models.contents import ShownContents
from limbeck.records import Chat, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("limbeck")


class Encoder:
    """Turns what a row says into token ids.

    `options` go to the chat template. `continued`: the student continues a last message of the assistant's.

    Raises `DataError` where a system message or options are asked for and there is no chat template to take them.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        chat: bool,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
        continued: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.has_template = bool(tokenizer.chat_template)
        self.chat = chat and self.has_template
        self.system, self.options, self.continued = system, dict(options or {}), continued
        self._shown = ShownContents(tokenizer)
        if system is not None and not self.has_template:
            raise DataError(
                f"task.system = {system!r} needs a chat template, and the tokenizer "
                f"{name_of(tokenizer)} has none. Remove task.system, or take a model with a chat template."
            )
        check_unicode("task.system", system)
        check_options(tokenizer, self.options, "task.template_options")

    def chat_of(
        self,
        shown: str | Sequence[Message],
        tools: Sequence[Message] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Chat | None:
        """What `text` or `messages` renders; None for raw text."""
        if isinstance(shown, str):
            if not self.chat:
                return None
            shown = [{"role": "user", "content": shown}]
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        continued = self.continued and shown[-1]["role"] == "assistant"
        return Chat((*system, *shown), tuple(tools or ()), {**self.options, **(options or {})}, continued)

    def text(
        self, text: str, tools: Sequence[Message] | None = None, options: Mapping[str, Any] | None = None
    ) -> list[int]:
        """One user message where chat is on and there is a template, else raw text."""
        if self.chat:
            return self.messages([{"role": "user", "content": text}], tools, options)
        if self.system is not None:
            raise DataError(
                f"task.system = {self.system!r} needs a chat to stand in, but task.chat = false. "
                "Set task.chat = true, or remove task.system."
            )
        for what, given, column in (
            ("tools", tools, "tools"), ("template_options", {**self.options, **(options or {})}, "template_options"),
        ):  # fmt: skip
            if given:
                raise DataError(
                    f"the row has {what}, which a chat template writes into the prompt, but this prompt is raw text. "
                    "Give messages, take a model with a chat template and task.chat = true, or point "
                    f"task.columns.{column} at a column that is not there."
                )
        return [int(token) for token in self.tokenizer(text)["input_ids"]]

    def messages(
        self,
        messages: Sequence[Message],
        tools: Sequence[Message] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """A chat, up to and including the header of the answer that is wanted, or the end of what is continued."""
        if not self.has_template:
            raise DataError(
                f"messages need a chat template, and the tokenizer {name_of(self.tokenizer)} has none. "
                "Give a `prompt` column of plain text, or take a model with a chat template."
            )
        if self.system is not None and messages[0]["role"] == "system":
            raise DataError(
                "the messages already begin with a system message, and task.system = "
                f"{self.system!r} would put a second one before it. Remove one of the two."
            )
        if options:
            check_options(self.tokenizer, options, "task.columns.template_options")
        chat = self.chat_of(messages, tools, options)
        assert chat is not None
        return chat_ids(self.tokenizer, self.fitted(chat), chat.tools, chat.options, chat.continued)

    def fitted(self, chat: Chat, *more: Message) -> list[Message]:
        """The messages of a chat as the template takes their contents, and `more` after them. Raises `DataError`."""
        return self._shown.fitted(chat, *more)


class ChatSettings(Protocol):
    """What the tables of tasks whose rows become prompts have in common."""

    @property
    def chat(self) -> bool: ...
    @property
    def system(self) -> str | None: ...
    @property
    def template_options(self) -> Mapping[str, Any]: ...
    @property
    def continue_final_message(self) -> bool: ...


def encoder_of(section: ChatSettings, tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """The encoder that a task's table asks for. Raises `DataError`."""
    return Encoder(tokenizer, section.chat, section.system, section.template_options, section.continue_final_message)


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
