"""Prompts with the completions that somebody wrote: rows of `rollout.sources` with from = "dataset".

    {"prompt": "12+34=", "completion": "46"}                                   raw text, or one user message
    {"messages": [..., {"role": "assistant", "content": "46"}]}                a chat: the last message is it
    {"prompt": [{"role": "user", ...}], "completion": [{"role": "assistant", ...}]}

    for each row    Completion(prompt, token_ids)      what the student would have to say after the very prompt

A completion's tokens follow the ids of the prompt as the student is given it, and end with a stop token, as a response
that was sampled does. Only they are trained; earlier messages of the assistant are context.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from limbeck.config.sources import DatasetSourceConfig
from limbeck.config.task import DatasetTaskConfig
from limbeck.errors import DataError
from limbeck.models.chat import Message, chat_text, name_of
from limbeck.records import Prompt
from limbeck.tasks.columns import parsed, to_prompt
from limbeck.tasks.messages import joined, without_nulls
from limbeck.tasks.paths import value_at
from limbeck.tasks.prompts import Encoder, check_unicode
from limbeck.tasks.sources import Row, Source, check_size, file_rows, of_dataset, shortened

logger = logging.getLogger("limbeck")


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt, and what is to be said after it."""

    prompt: Prompt
    token_ids: tuple[int, ...]  # ends with a stop token


@dataclass(frozen=True)
class Limits:
    """What a completion must keep to."""

    stop_ids: tuple[int, ...]
    vocabulary: int
    max_tokens: int  # of the completion
    context: int | None  # tokens of prompt and completion; None: no limit
    as_seen: Callable[[Prompt], tuple[int, int | None]] | None = (
        None  # tokens of it as its teacher sees it; its context
    )


class CompletionEncoder(Encoder):
    """An encoder that also goes on with a prompt."""

    def completion(self, prompt: Prompt, answer: Message, stop_ids: Sequence[int]) -> list[int]:
        """What follows the ids of a prompt that was encoded here, its stop token included. Raises `DataError`."""
        chat = prompt.chat
        if chat is None:
            before, rest = prompt.text, answer.get("content")
            if not isinstance(rest, str):
                raise DataError("the prompt is raw text, so the completion has to be text too, without calls of tools")
        else:
            asked, whole_chat = self.fitted(chat), self.fitted(chat, answer)
            before = chat_text(self.tokenizer, asked, chat.tools, chat.options)
            whole = chat_text(self.tokenizer, whole_chat, chat.tools, chat.options, generation_prompt=False)
            if not whole.startswith(before):
                raise DataError(
                    f"the chat template of {name_of(self.tokenizer)} writes the conversation with its completion in "
                    "another way than the prompt that asks for one, so nobody knows what the student would have to "
                    "say. Give prompt and completion as text and set chat = false in the source"
                )
            rest = whole[len(before) :]
        return self._ended(self._continuation(list(prompt.token_ids), before, rest, chat is not None), stop_ids)

    def _continuation(self, prompt_ids: list[int], before: str, rest: str, chat: bool) -> list[int]:
        """Tokens of `rest`, which begin where the prompt's end. Raises `DataError` where none say that text."""

        def encode(text: str, special: bool) -> list[int]:
            return [int(id_) for id_ in self.tokenizer(text, add_special_tokens=special)["input_ids"]]

        together = encode(before + rest, not chat)
        apart = together[: len(prompt_ids)] != prompt_ids  # the two would share a token
        ids = encode(rest, False) if apart else together[len(prompt_ids) :]
        said, expected = (
            unicodedata.normalize("NFC", text)  # as some tokenizers do: another spelling of the same
            for text in (self._decode([*prompt_ids, *ids]), self._decode(prompt_ids) + rest)
        )
        if said == expected:
            return ids
        name, first = name_of(self.tokenizer), _first_difference(said, expected)
        shown = f"after the prompt it would read {said[first:][:80]!r} and not {expected[first:][:80]!r}"
        if apart:
            raise DataError(
                f"the completion begins in the middle of a token of {name}: {shown}. Begin the completion with what "
                "ends the prompt, such as a blank"
            )
        raise DataError(
            f"the completion has text that {name} has no tokens for: {shown}. The student cannot say it. Correct the "
            "text, or remove the row"
        )

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _ended(self, ids: list[int], stop_ids: Sequence[int]) -> list[int]:
        """Up to the first stop token, which is added where there is none. Raises `DataError` for text after it."""
        stop = next((place for place, id_ in enumerate(ids) if id_ in stop_ids), None)
        if stop is None:
            own = self.tokenizer.eos_token_id
            return [*ids, own if own in stop_ids else stop_ids[0]]
        after = [id_ for id_ in ids[stop + 1 :] if id_ not in stop_ids]
        if after and self._decode(after).strip():
            raise DataError(
                f"the completion goes on after the stop token {self._decode([ids[stop]])!r}: {self._decode(after)!r}. "
                "The student would have stopped there. Take that token out of the text"
            )
        return ids[: stop + 1]


def _first_difference(one: str, other: str) -> int:
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return max(0, same - 20)  # with a little of what comes before


def load_completions(section: DatasetSourceConfig, encoder: CompletionEncoder, limits: Limits) -> list[Completion]:
    """All rows of a source, in order. Raises `DataError` for one that cannot be used, and where none is left."""
    source = _rows_of(section)
    found: list[tuple[Completion, str | None]] = []  # and why it is too long
    for row in source.rows:
        try:
            check_size(row)
            one = _completion(row, section, encoder, limits)
            found.append((one, _too_long(one, limits)))
        except DataError as error:
            raise DataError(f"{row.where}: {error}") from error.__cause__
    if not found:
        raise DataError(f"{source.name} has no rows; expected at least one prompt and its completion")
    return _fitting(found, section, limits, source.name)


def _rows_of(section: DatasetSourceConfig) -> Source:
    if section.path is not None:
        path = Path(section.path)
        return Source(str(path), section.label, file_rows(path, section.label))
    assert section.hub is not None
    task = DatasetTaskConfig(
        name=section.hub, config=section.config, split=section.split or "train", columns=section.columns
    )
    return replace(of_dataset(task)[0], task=section.label)


def _completion(row: Row, section: DatasetSourceConfig, encoder: CompletionEncoder, limits: Limits) -> Completion:
    asked, answer = _split(row, section)
    prompt = to_prompt(asked, section.label, section.columns, encoder)
    ids = encoder.completion(prompt, answer, limits.stop_ids)
    if outside := [id_ for id_ in (*prompt.token_ids, *ids) if not 0 <= id_ < limits.vocabulary]:
        raise DataError(
            f"it has token {outside[0]}, but student and teacher share ids 0 to {limits.vocabulary - 1} only"
        )
    return Completion(prompt, tuple(ids))


def _split(row: Row, section: DatasetSourceConfig) -> tuple[Row, Message]:
    """The row without its completion, and the completion as a message of the assistant. Raises `DataError`."""
    columns, values = section.columns, dict(row.values)
    completion = values.pop(columns.completion, None)
    check_unicode(columns.completion, completion)
    prompt, messages = value_at(values, columns.prompt), value_at(values, columns.messages)
    if isinstance(messages, str):
        messages = parsed(messages, columns.messages)
    if isinstance(prompt, list) or isinstance(completion, list):
        if not isinstance(prompt, list):
            raise DataError(f"{columns.completion!r} is a list of messages, so {columns.prompt!r} has to be one too")
        del values[columns.prompt]
        said = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion or []
        if not isinstance(said, list):
            raise DataError(f"{columns.completion!r} is {shortened(completion)}; expected text or a list of messages")
        messages, completion = [*prompt, *said], None
    if completion is None:
        messages = messages if isinstance(messages, list) else []
        answer = messages[-1] if messages else None
        if not isinstance(answer, Mapping) or answer.get("role") != "assistant":
            raise DataError(
                f"there is no {columns.completion!r}, and no {columns.messages!r} that end with an assistant message; "
                "the columns are " + ", ".join(map(repr, row.values)) + ". Point columns.completion or "
                "columns.messages of the source at the right one"
            )
        values[columns.messages] = messages[:-1]
        return replace(row, values=values), _checked(answer, row)
    if not isinstance(completion, str):
        raise DataError(f"{columns.completion!r} is {shortened(completion)}; expected text")
    return replace(row, values=values), _checked({"role": "assistant", "content": completion}, row)


def _checked(answer: Message, row: Row) -> Message:
    content, calls = answer.get("content"), answer.get("tool_calls")
    if isinstance(content, list) and content:
        content = joined(content, "the completion's content")
    if not isinstance(content, str) and not (content is None and calls):
        raise DataError(f"the assistant's last message says {shortened(content)}; expected text")
    if not content and not calls:
        raise DataError("the completion is empty: there is nothing to learn from it but to say nothing")
    answer = {**answer, "content": content}
    return {"content": None, **without_nulls(answer)} if row.nulls_are_absent else answer


def _too_long(one: Completion, limits: Limits) -> str | None:
    """Why it is; None where it fits. Raises `DataError` where the prompt cannot be rendered for its teacher."""
    prompt, said = len(one.prompt.token_ids), len(one.token_ids)
    seen, theirs = (prompt, None) if limits.as_seen is None else limits.as_seen(one.prompt)
    if theirs is not None and seen + said > theirs:
        return (
            f"{seen} tokens as its teacher sees it and a completion of {said}; both have to fit into the teacher's "
            f"context of {theirs}"
        )
    if said <= limits.max_tokens and (limits.context is None or prompt + said <= limits.context):
        return None
    return (
        f"{prompt} tokens and a completion of {said}; a completion has at most rollout.max_tokens = {limits.max_tokens}"
        + ("" if limits.context is None else f", and both fit into a context of {limits.context}")
    )


def _fitting(
    found: list[tuple[Completion, str | None]], section: DatasetSourceConfig, limits: Limits, name: str
) -> list[Completion]:
    """Those that are short enough. Raises `DataError` for others, unless they are to be dropped."""
    kept = [one for one, why in found if why is None]
    if len(kept) == len(found):
        return kept
    worst, why = next((one, why) for one, why in found if why is not None)
    what = (
        f"{name}: {len(found) - len(kept)} of {len(found)} rows are too long. The first, {worst.prompt.id!r}, has {why}"
    )
    if section.too_long == "error" or not kept:
        longer = "Raise rollout.max_tokens" if len(worst.token_ids) > limits.max_tokens else "Shorten the row"
        remedy = longer + (', or set too_long = "drop" in the source' if kept else "")
        raise DataError(f"{what}. {remedy}.")
    logger.warning("%s. They are dropped.", what)
    return kept


def as_prompt(one: Completion) -> Prompt:
    """Prompt and completion as one sequence, for the digest by which a resumed run knows its data."""
    return replace(one.prompt, token_ids=(*one.prompt.token_ids, *one.token_ids))
