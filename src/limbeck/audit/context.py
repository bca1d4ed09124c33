"""What a model may have seen in place of a row's own prompt: one candidate each, tried where nothing else explains.

A chat template is found by rendering it around a marker: what comes before and after the marker is cut off a prompt
that has it, and put around one that has not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from limbeck.audit.dump import Row
from limbeck.errors import DataError, ModelError
from limbeck.models.chat import chat_ids, chat_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARK = "limbeck0audit1mark"
WINDOWS = (8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Other:
    """Rows with another prefix, and what that would mean."""

    name: str  # of the finding
    text: str  # "the prompt as plain text, without the student's chat template"
    rows: list[Row]


def others(
    rows: Sequence[Row], student: PreTrainedTokenizerBase, side: PreTrainedTokenizerBase | None
) -> Iterator[Other]:
    """Every way in which these rows' prompts could have reached a model otherwise."""
    tokenizers = {"the student's": student}
    if side is not None and side is not student:
        tokenizers["its own"] = side
    yield from _ways(
        rows, "context", "the response without its prompt", lambda row: row.token_ids[row.start - 1 : row.start]
    )
    yield from _ways(rows, "context", "the prompt without its first token", lambda row: row.token_ids[1 : row.start])
    for whose, tokenizer in tokenizers.items():
        for kind in ("bos", "eos"):
            token = getattr(tokenizer, f"{kind}_token_id")
            if token is not None:
                yield from _ways(
                    rows, "template", f"{whose} {kind} token before the prompt",
                    lambda row, token=token: np.concatenate([[token], row.token_ids[: row.start]]),
                )  # fmt: skip
        yield from _templates(rows, whose, tokenizer, student)
    for window in WINDOWS:
        cut = [_cut(row, window) for row in rows]
        if any(len(a.token_ids) < len(b.token_ids) for a, b in zip(cut, rows, strict=True)):
            yield Other("context", f"only the last {window} tokens of the sequence", cut)


def _templates(
    rows: Sequence[Row], whose: str, tokenizer: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase
) -> Iterator[Other]:
    contents = [_content(row, student) for row in rows]
    if any(content is None for content in contents):
        return

    def plain(row: Row) -> np.ndarray:
        return np.asarray(tokenizer(contents[place[id(row)]]).input_ids, dtype=np.int64)

    def chat(row: Row) -> np.ndarray:
        messages = row.messages or [{"role": "user", "content": str(contents[place[id(row)]])}]
        return np.asarray(chat_ids(tokenizer, messages), dtype=np.int64)

    place = {id(row): i for i, row in enumerate(rows)}
    yield from _ways(rows, "template", "the prompt as plain text, without a chat template", plain)
    if tokenizer.chat_template:
        yield from _ways(rows, "template", f"the prompt in {whose} chat template", chat)


def _content(row: Row, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What the user said: the prompt's text without the student's template."""
    text = str(tokenizer.decode(row.token_ids[: row.start].tolist(), skip_special_tokens=False))
    if not tokenizer.chat_template:
        return row.prompt_text or text
    try:
        before, found, after = chat_text(tokenizer, [{"role": "user", "content": MARK}]).partition(MARK)
    except (DataError, ModelError):
        return row.prompt_text
    if found and text.startswith(before) and text.endswith(after) and len(text) >= len(before) + len(after):
        return text[len(before) : len(text) - len(after)]
    return row.prompt_text or text


def _ways(rows: Sequence[Row], name: str, text: str, prefix: object) -> Iterator[Other]:
    """The rows with the prefix that a function of each gives, where every row has one and some differ."""
    changed = []
    for row in rows:
        try:
            ids = prefix(row)  # type: ignore[operator]
        except (DataError, ModelError):
            return
        if len(ids) == 0:
            return
        changed.append(with_prefix(row, np.asarray(ids, dtype=np.int64)))
    if any(not np.array_equal(a.token_ids, b.token_ids) for a, b in zip(changed, rows, strict=True)):
        yield Other(name, text, changed)


def with_prefix(row: Row, prefix: np.ndarray) -> Row:
    """The row with its response after other tokens."""
    tail, added = slice(row.start, None), len(prefix)
    mask = None if row.mask is None else np.concatenate([np.zeros(added, bool), row.mask[tail]])
    values = {name: np.concatenate([np.full(added, np.nan), v[tail]]) for name, v in row.values.items()}
    ids = np.concatenate([prefix, row.token_ids[tail]])
    return replace(row, token_ids=ids, start=added, mask=mask, values=values, teacher_top=None)


def _cut(row: Row, window: int) -> Row:
    """The row with no more than `window` tokens before its response's end, the response kept."""
    first = max(0, min(row.start - 1, len(row.token_ids) - window))
    return with_prefix(row, row.token_ids[first : row.start])
