"""Token ids as text: a whole response for graders, single tokens for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from limbeck.records import Ints

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def highest_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The largest id of the tokenizer: rows of an output head above it are padding."""
    ids: dict[str, int] = tokenizer.get_vocab()
    return max(ids.values())


def ids_without_token(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> list[int]:
    """Ids below `vocabulary` that the tokenizer has no token for."""
    return sorted(set(range(vocabulary)).difference(tokenizer.get_vocab().values()))


def vocabulary_note(name: str, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> str | None:
    """Says that some ids which can be sampled decode to nothing; None where each has a token."""
    holes = ids_without_token(tokenizer, vocabulary)
    if not holes:
        return None
    return (
        f"{name}: its tokenizer has no token for {len(holes)} of the ids below {vocabulary}, such as {holes[0]}. They "
        "can be sampled, and decode to no text"
    )


@dataclass(frozen=True)
class Decoder:
    """Token ids to the text a grader sees: special tokens left out."""

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, ids: Ints) -> str:
        text: str = self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)
        return text


class Names:
    """Token ids to the text of each on its own, special tokens shown by name."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        added = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special_ids = frozenset({*tokenizer.all_special_ids, *added})
        self._known: dict[int, str] = {}

    def __call__(self, ids: Sequence[int]) -> list[str]:
        return [self._name(id_) for id_ in ids]

    def _name(self, id_: int) -> str:
        if id_ not in self._known:
            text: str = self.tokenizer.decode([id_], skip_special_tokens=False)
            piece = self.tokenizer.convert_ids_to_tokens(id_) or ""
            if piece.startswith("\u2581") and not text.startswith(" "):
                text = f" {text}"  # SentencePiece drops the blank of a first token
            self._known[id_] = text
        return self._known[id_]
