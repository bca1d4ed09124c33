"""Chat templates, applied so that whatever is wrong with one ends in one message that names it.

A template is a program that came with the model: it may have a syntax error, not end, ask for a system message, know
only some roles, or be one of several with names. `ModelError` says that it is no good, `DataError` that it refuses the
messages; both name the tokenizer.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from limbeck.errors import DataError, ModelError
from limbeck.formatting import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]  # {"role": "user", "content": "12+34="}
MOST_SAID = 500  # characters of a template's own message
SECONDS = 10.0  # that one chat may take, from messages to tokens


def chat_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[Message] | None = None,
    options: Mapping[str, Any] | None = None,
    continued: bool = False,
) -> list[int]:
    """The tokens of a chat, up to and including the header of the answer that is wanted. Raises `DataError`.

    Where the last message is to be `continued`, up to the end of what it says.
    """
    end = {"continue_final_message" if continued else "add_generation_prompt": True}
    return [int(token) for token in _apply(tokenizer, messages, tools, options, tokenize=True, **end)]


def chat_text(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[Message] | None = None,
    options: Mapping[str, Any] | None = None,
    generation_prompt: bool = True,
) -> str:
    """The same as text; without a `generation_prompt` up to the last message's end. Raises `DataError`.

    `options` go to the template, such as {"enable_thinking": False}.
    """
    return str(_apply(tokenizer, messages, tools, options, tokenize=False, add_generation_prompt=generation_prompt))


def prove_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises `ModelError` for a chat template that is no program, or does not end on one short message.

    Whether it takes such a message is another question, which the data ask.
    """
    templates = tokenizer.chat_template
    texts = list(templates.values()) if isinstance(templates, Mapping) else [templates]
    if not all(text is None or isinstance(text, str) for text in texts):
        raise ModelError(
            f"the chat template of {name_of(tokenizer)} is {shown(templates)}, expected text. Repair chat_template in "
            "tokenizer_config.json."
        )
    if any(texts):
        with suppress(DataError):
            chat_text(tokenizer, [{"role": "user", "content": "a"}])


def check_options(tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any], key: str) -> None:
    """Raises `DataError` for an option that the chat template does not read: it would change nothing."""
    templates = tokenizer.chat_template
    texts = list(templates.values()) if isinstance(templates, Mapping) else [templates or ""]
    if options and not any(texts):
        raise DataError(
            f"{key} needs a chat template, and the tokenizer {name_of(tokenizer)} has none. Remove it, or take a model "
            "with a chat template."
        )
    for name in options:
        if not any(re.search(rf"\b{re.escape(name)}\b", text) for text in texts):
            raise DataError(
                f"{key} has {name!r}, which the chat template of {name_of(tokenizer)} does not read: it would change "
                "nothing. Correct the name, or remove it."
            )


def name_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """For messages: where it was loaded from, or its class."""
    return repr(tokenizer.name_or_path or type(tokenizer).__name__)


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[Message] | None,
    options: Mapping[str, Any] | None = None,
    **how: bool,
) -> Any:
    _check_choice(tokenizer, bool(tools))
    try:
        return _within(
            SECONDS,
            lambda: tokenizer.apply_chat_template(
                list(messages), tools=list(tools) if tools else None, return_dict=False, **{**(options or {}), **how}
            ),
        )
    except TimeoutError:
        raise ModelError(
            f"the chat template of {name_of(tokenizer)} does not end: {len(messages)} messages of "
            f"{sum(len(str(message.get('content'))) for message in messages)} characters took it more than {SECONDS:g} "
            "seconds. Repair chat_template.jinja, or chat_template in tokenizer_config.json."
        ) from None
    except Exception as error:  # templates raise what they like, mostly jinja2's TemplateError
        line = getattr(error, "lineno", None)  # a syntax error of the template itself
        if line is not None:
            raise ModelError(
                f"the chat template of {name_of(tokenizer)} has a syntax error in line {line} ({error}). Repair "
                "chat_template.jinja, or chat_template in tokenizer_config.json."
            ) from error
        roles = [message.get("role") for message in messages]
        system = (
            "" if "system" in roles else " If it asks for a system message, set task.system, or give one in the row."
        )
        raise DataError(
            f"the chat template of {name_of(tokenizer)} refuses these messages ({type(error).__name__}: "
            f"{str(error)[:MOST_SAID]}). Their roles are {roles}.{system}"
        ) from error


class _StopError(BaseException):
    """Raised inside a thread whose time is up."""


def _within(seconds: float, work: Callable[[], Any]) -> Any:
    """What `work` returns or raises; `TimeoutError` where it is not done in time, and then it is stopped.

    In a thread of its own, because a loop of Python code can be stopped in no other way from any thread.
    """
    done: list[tuple[Any, BaseException | None]] = []

    def run() -> None:
        try:
            done.append((work(), None))
        except BaseException as error:
            done.append((None, error))

    thread = threading.Thread(target=run, name="limbeck-template", daemon=True)
    thread.start()
    thread.join(seconds)
    if not done:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_StopError))
        raise TimeoutError
    result, error = done[0]
    if error is not None:
        raise error
    return result


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
