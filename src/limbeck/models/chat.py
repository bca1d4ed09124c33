"""Chat templates, applied so that whatever is wrong with one ends in one message that names it.

A template is a program that came with the model: it may have a syntax error, ask for a system message, know only some
roles, or be one of several with names. `DataError` says which, and of which tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from limbeck.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]  # {"role": "user", "content": "12+34="}


def chat_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Sequence[Message] | None = None
) -> list[int]:
    """The tokens of a chat, up to and including the header of the answer that is wanted. Raises `DataError`."""
    return [int(token) for token in _apply(tokenizer, messages, tools, tokenize=True)]


def chat_text(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Sequence[Message] | None = None
) -> str:
    """The same as text. Raises `DataError`."""
    return str(_apply(tokenizer, messages, tools, tokenize=False))


def name_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """For messages: where it was loaded from, or its class."""
    return repr(tokenizer.name_or_path or type(tokenizer).__name__)


def _apply(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Sequence[Message] | None, tokenize: bool
) -> Any:
    _check_choice(tokenizer, bool(tools))
    try:
        return tokenizer.apply_chat_template(
            list(messages),
            tools=list(tools) if tools else None,
            add_generation_prompt=True,
            tokenize=tokenize,
            return_dict=False,
        )
    except Exception as error:  # templates raise what they like, mostly jinja2's TemplateError
        line = getattr(error, "lineno", None)  # a syntax error of the template itself
        if line is not None:
            raise DataError(
                f"the chat template of {name_of(tokenizer)} has a syntax error in line {line} ({error}). Repair "
                "chat_template.jinja, or chat_template in tokenizer_config.json."
            ) from error
        roles = [message.get("role") for message in messages]
        system = (
            "" if "system" in roles else " If it asks for a system message, set task.system, or give one in the row."
        )
        raise DataError(
            f"the chat template of {name_of(tokenizer)} refuses these messages ({type(error).__name__}: {error}). "
            f"Their roles are {roles}.{system}"
        ) from error


def _check_choice(tokenizer: PreTrainedTokenizerBase, tools: bool) -> None:
    """Of several named templates transformers takes `default`, or `tool_use` where there are tools."""
    templates = tokenizer.chat_template
    if isinstance(templates, Mapping) and "default" not in templates and not (tools and "tool_use" in templates):
        names = ", ".join(map(repr, templates))
        raise DataError(
            f"the tokenizer {name_of(tokenizer)} has chat templates named {names or 'nothing'}, and none named "
            "'default'. Choose one: tokenizer.chat_template = tokenizer.chat_template[NAME], then "
            "tokenizer.save_pretrained(folder)."
        )
