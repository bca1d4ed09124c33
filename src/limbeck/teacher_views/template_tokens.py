"""The tokens by which a chat template ends an answer and encloses thinking, found by rendering a chat.

template_tokens_of(tokenizer)       TemplateTokens(end_of_turn=2, opening=None, closing=None)      of "<|im_end|>"
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limbeck.errors import DataError
from limbeck.models.chat import chat_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWER, THOUGHT, NEXT = "Limbeckanswer", "Limbeckthought", "Limbecknext"  # texts that no template has in it
KNOWN_TAGS = (  # of thinking, of templates that take thoughts out of an answer's text
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<thinking>", "</thinking>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)


@dataclass(frozen=True)
class TemplateTokens:
    """Ids in the tokenizer's own vocabulary; None where the template has no single token for it."""

    end_of_turn: int | None
    opening: int | None = None  # of thinking
    closing: int | None = None


def template_tokens_of(tokenizer: PreTrainedTokenizerBase) -> TemplateTokens:
    """The end of a turn is the token that the template puts behind an answer, else the tokenizer's end of sequence."""
    tokens = tokens_of(tokenizer)
    end = _behind_answer(tokenizer, tokens)
    opening, closing = _around_thought(tokenizer, tokens)
    return TemplateTokens(tokenizer.eos_token_id if end is None else end, opening, closing)


def tokens_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The tokens that are no pieces of plain text, by what they are written as."""
    added = {token.content: id_ for id_, token in tokenizer.added_tokens_decoder.items()}
    special = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    return {**added, **{str(content): id_ for content, id_ in special}}


def _behind_answer(tokenizer: PreTrainedTokenizerBase, tokens: dict[str, int]) -> int | None:
    """Of the last answer; where the template ends only those that something follows, of an earlier one."""
    if not tokenizer.chat_template:
        return None
    chat = [{"role": "user", "content": NEXT}, {"role": "assistant", "content": ANSWER}]
    for messages in (chat, [*chat, {"role": "user", "content": NEXT}]):
        text = _rendered(tokenizer, messages)
        if text is not None and ANSWER in text:
            found = _first(text.rpartition(ANSWER)[2], tokens)
            if found is not None:
                return found
    return None


def _around_thought(tokenizer: PreTrainedTokenizerBase, tokens: dict[str, int]) -> tuple[int | None, int | None]:
    if not tokenizer.chat_template:
        return None, None
    answer = {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT, "thinking": THOUGHT}
    text = _rendered(tokenizer, [{"role": "user", "content": NEXT}, answer])
    if text is not None and THOUGHT in text:
        before, _, after = text.partition(THOUGHT)
        opening, closing = _last(before, tokens), _first(after, tokens)
        if opening is not None and closing is not None:
            return opening, closing
    source = str(tokenizer.chat_template)
    for opens, closes in KNOWN_TAGS:
        if closes in source and opens in tokens and closes in tokens:
            return tokens[opens], tokens[closes]
    return None, None


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]]) -> str | None:
    """None where the template refuses such a chat, even with a system message before it."""
    for system in ([], [{"role": "system", "content": NEXT}]):
        try:
            return chat_text(tokenizer, [*system, *messages], generation_prompt=False)
        except DataError:
            continue
    return None


def _first(text: str, tokens: dict[str, int]) -> int | None:
    """The token that a text begins with, white space aside."""
    text = text.lstrip()
    return tokens[max(found, key=len)] if (found := [t for t in tokens if t and text.startswith(t)]) else None


def _last(text: str, tokens: dict[str, int]) -> int | None:
    text = text.rstrip()
    return tokens[max(found, key=len)] if (found := [t for t in tokens if t and text.endswith(t)]) else None
