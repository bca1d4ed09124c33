"""How a tokenizer spells: text into tokens with the bytes they end on, and what stands for its special tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from limbeck.errors import DataError
from limbeck.models.chat import chat_text, name_of
from limbeck.models.token_bytes import TokenBytes
from limbeck.teacher_views.alignment import NOWHERE
from limbeck.teacher_views.template_tokens import ANSWER, NEXT, TemplateTokens, template_tokens_of, tokens_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BEFORE = ("\x00", "\n", "=", ".")  # texts before a text, of which one will not be joined with it
SHOWN = 50  # characters of a text, in messages
PROBE = "a"  # a text that has nothing before it of its own


@dataclass(frozen=True)
class Spelled:
    """A text in tokens."""

    ids: tuple[int, ...]
    ends: tuple[int, ...]  # of each, in the text's UTF-8; NOWHERE inside of a character that several say


class Speller:
    """A tokenizer, as one who reads and writes bytes. `stop_ids`: what a turn of its model may end with.

    Raises `ModelError` for a tokenizer whose tokens have no bytes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int] = ()) -> None:
        self.tokenizer, self.stop_ids, self.name = tokenizer, frozenset(stop_ids), name_of(tokenizer)
        self.token_bytes = TokenBytes(tokenizer)
        self.template_tokens: TemplateTokens = template_tokens_of(tokenizer)
        self._by_name = tokens_of(tokenizer)
        self.atoms = {id_: content for content, id_ in self._by_name.items()}  # tokens that are no pieces of plain text
        self.lead = _lead(tokenizer)
        self._blanks: dict[tuple[str, int | None], str] = {}
        said = self.token_bytes.of(self._encode("a").ids)
        self._prepends = b"".join(piece or b"" for piece in said) == b" a"

    def counterpart(self, id_: int, other: Speller) -> int | None:
        """Of an atom, the other's: by what templates use it for, else by its name; of another stop token, its end."""
        for mine, theirs in zip(astuple(self.template_tokens), astuple(other.template_tokens), strict=True):
            if id_ == mine and theirs is not None:
                return int(theirs)
        same = other._by_name.get(self.atoms[id_])
        return other.template_tokens.end_of_turn if same is None and id_ in self.stop_ids else same

    def say(self, ids: Iterable[int]) -> list[bytes]:
        """The bytes of each token, and the name of a special one."""
        ids = list(map(int, ids))
        said = zip(ids, self.token_bytes.of(ids), strict=True)
        return [self.atoms[id_].encode() if piece is None else piece for id_, piece in said]

    def special(self, id_: int) -> int | None:
        """The id of a token that a text begins anew after; None for others, and for what stands for unknown text."""
        return id_ if id_ in self.atoms and id_ != self.tokenizer.unk_token_id else None

    def blank(self, lead: str, after: int | None) -> str:
        """What stands before a text that follows `lead` after the special token `after`, and is not the text's own.

        Many tokenizers put a blank where a text begins, and templates one before an answer.
        """
        if (lead, after) not in self._blanks:
            said = b"".join(self.say(self.encode(PROBE, lead, after).ids)).decode(errors="replace")
            known = said.endswith(PROBE) and not said.removesuffix(PROBE).strip()
            self._blanks[lead, after] = said.removesuffix(PROBE) if known else lead
        return self._blanks[lead, after]

    def encode(self, text: str, lead: str = "", after: int | None = None) -> Spelled:
        """`text` in the middle of a text, or after the special token `after`; `lead` comes before, and does not count.

        A tokenizer that puts a blank before every text puts it there after a special token, else before something else.
        A text that the tokenizer drops, such as blanks, has no tokens. Raises `DataError`.
        """
        if not text:
            return Spelled((), ())
        if after is not None:
            rendered = self._encode_after(after, lead + text)
            if rendered is not None:
                return self._after(rendered, 0, len(lead.encode()))
            lead = self.blank(lead, after)
        if not self._prepends:
            return self._after(self._encode(lead + text), 0, len(lead.encode()))
        for before in BEFORE:
            spelled = self._encode(before + lead + text)
            length = len(before.encode())
            if length in spelled.ends:
                return self._after(spelled, spelled.ends.index(length) + 1, length + len(lead.encode()))
        if spelled.ids == self._encode(before).ids and not b"".join(self.say(self._encode(text).ids)).strip():
            return Spelled((), ())  # it drops the text
        raise DataError(
            f"{self.name} joins {text[:SHOWN]!r} with whatever stands before it ({BEFORE} were tried), so nobody knows "
            "which tokens are its own."
        )

    def _after(self, spelled: Spelled, tokens: int, length: int) -> Spelled:
        ends = tuple(end if end == NOWHERE else max(0, end - length) for end in spelled.ends[tokens:])
        return Spelled(spelled.ids[tokens:], ends)

    def _encode_after(self, special: int, text: str) -> Spelled | None:
        """As a rendered chat is encoded; None for a text that has the name of a special token in it."""
        name = self.atoms[special]
        if any(other in text for other in self.atoms.values()):
            return None
        found = self.tokenizer(name + text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = [(max(0, begin - len(name)), max(0, end - len(name))) for begin, end in found["offset_mapping"][1:]]
        return self._spelled(found["input_ids"][1:], offsets, text) if found["input_ids"][0] == special else None

    def _encode(self, text: str) -> Spelled:
        found = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
        return self._spelled(found["input_ids"], found["offset_mapping"], text)

    def _spelled(self, ids: Sequence[int], offsets: Sequence[tuple[int, int]], text: str) -> Spelled:
        """`offsets` are in the text's characters."""
        ids = tuple(map(int, ids))
        pieces = self.token_bytes.of(ids)
        said, wanted = b"".join(piece or b"" for piece in pieces), text.encode()
        if said in (wanted, b" " + wanted) and None not in pieces:
            ends = np.cumsum([len(piece or b"") for piece in pieces], dtype=np.int64) - (len(said) - len(wanted))
            return Spelled(ids, tuple(ends.tolist()))
        return Spelled(ids, _by_characters(offsets, text))


def _lead(tokenizer: PreTrainedTokenizerBase) -> str:
    """The blank that the chat template puts before an answer, if it puts one there and nothing else."""
    question = {"role": "user", "content": NEXT}
    if not tokenizer.chat_template:
        return ""
    try:
        before = chat_text(tokenizer, [question])
        whole = chat_text(tokenizer, [question, {"role": "assistant", "content": ANSWER}], generation_prompt=False)
    except DataError:  # it refuses such a chat
        return ""
    lead, answer, _ = whole.removeprefix(before).rpartition(ANSWER)
    return lead if answer and not lead.strip() else ""


def _by_characters(offsets: Sequence[tuple[int, int]], text: str) -> tuple[int, ...]:
    """Where tokens end whose bytes are not those of the text, for a tokenizer may change it or have no token for it.

    By which of its characters the tokenizer says they are of. Of tokens of one character only the last has an end, and
    what no token is of belongs to the one before.
    """
    place = np.cumsum([0, *(len(character.encode()) for character in text)]).tolist()
    ends = [NOWHERE if now == later else place[max(now[1], later[0])] for now, later in pairwise(map(tuple, offsets))]
    return (*ends, place[-1]) if offsets else ()


def continuations(ours: TokenBytes, theirs: TokenBytes) -> frozenset[int]:
    """Our tokens that begin one of ours which the others cannot say as one token."""
    said = ours.all()
    known = set(theirs.all().values())
    begins: set[bytes] = set()
    prefixes: list[bytes] = []
    for text in sorted(set(said.values())):
        while prefixes and not text.startswith(prefixes[-1]):
            prefixes.pop()
        if text not in known:
            begins.update(prefixes)
        prefixes.append(text)
    return frozenset(id_ for id_, text in said.items() if text in begins)
