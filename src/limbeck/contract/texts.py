"""The texts that probes ask about: one of random tokens after the beginning of a real one, and what is changed in it.

Random tokens are what no tokenizer would produce: a server that scores a text, and not the ids, is found by them. All
positions of a text are asked at once. The texts are the same in every proof of the same prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from limbeck.contract.answers import Answer
from limbeck.records import Ints, Mask

LENGTH = 64  # tokens of a text
PLACES = 6  # where it is changed
RANKS = (0, 1, 3, 6, 10, 15)  # of the tokens that are put there, among the most likely
SHORTEST = 8  # tokens: below it nothing can be said
REPEATED, REPEATS = 4, 16  # tokens, and how often each
PARTS, TAIL = 12, 4  # of a long text, and tokens of each at its end


@dataclass(frozen=True, slots=True)
class Changed:
    """The text with another token at `place`, the same one after it, and other tokens after that."""

    place: int
    ids: Ints
    uniform: Mask  # [L] which were drawn alike from the whole vocabulary


class ProbeTexts:
    """`texts` are real ones, `ids` some tokens of the vocabulary; `tokens`: every id below it is one, where known."""

    def __init__(self, texts: Sequence[Sequence[int]], ids: Sequence[int], tokens: int | None, room: int) -> None:
        self.rng, self.tokens = np.random.default_rng(0), tokens
        self.pool = np.array(list(dict.fromkeys([*ids, *(token for text in texts for token in text)])), dtype=np.int64)
        self.length = max(SHORTEST, min(LENGTH, room))
        beginning = np.asarray(max(texts, key=len), dtype=np.int64)[: self.length // 3]
        self.start = len(beginning)
        self.base = np.concatenate([beginning, self.draw(self.length - self.start)])
        self.uniform = (np.arange(self.length) >= self.start) & (tokens is not None)

    def draw(self, count: int) -> Ints:
        """Tokens drawn alike from the vocabulary where it is known, else from those that are."""
        return self.rng.integers(0, self.tokens, count) if self.tokens else self.rng.choice(self.pool, count)

    def changed(self, base: Answer) -> list[Changed]:
        """The text changed at some places, to tokens that `base`, the answer to it, lists as likely there if it does.

        So the score that each gets as a token of the text is known already, from a text in which it was not.
        """
        places = np.unique(np.linspace(max(2, self.start), self.length - 3, PLACES).astype(int))
        return [self._changed(base, int(place), rank) for place, rank in zip(places, RANKS, strict=False)]

    def _changed(self, base: Answer, place: int, rank: int) -> Changed:
        there = self.base[place]
        if base.top_ids_SK is None:
            likely = [token for token in self.pool if token != there]
        else:
            likely = [token for token in base.top_ids_SK[base.row(place)] if token != there]
        token = likely[rank % len(likely)] if likely else there
        after = self.draw(self.length - place - 2)
        ids = np.concatenate([self.base[:place], [token], self.base[place + 1 : place + 2], after])
        return Changed(place, ids, self.uniform & (np.arange(self.length) > place + 1))

    def repeated(self) -> list[Ints]:
        """Texts of one token again and again: of the real beginning, whose tokens a model knows."""
        known = list(dict.fromkeys(self.base[: self.start].tolist()))[:REPEATED]
        return [np.full(min(REPEATS, self.length), token, dtype=np.int64) for token in known]

    def long(self, length: int) -> Ints:
        """A text of `length` tokens: that of the other probes, random ones, and what its parts begin with.

        A model that has read a part finds its first tokens likely at the end.
        """
        tail, body = self._tail(length), self.body(length)
        text = np.concatenate([self.base[:body], self.draw(max(0, body - len(self.base)))])
        return np.concatenate([text, *(text[start : start + tail] for start, _ in self.parts(length))])

    def body(self, length: int) -> int:
        """Where the end of a long text begins."""
        return length - self._parts(length) * self._tail(length)

    def parts(self, length: int) -> list[tuple[int, int]]:
        """(from, to) of the parts that a long text falls into, but for its first token and its end."""
        ends = np.linspace(1, self.body(length), self._parts(length) + 1).astype(int).tolist()
        return list(pairwise(ends))

    def without(self, base: Answer, part: tuple[int, int], rank: int) -> Ints:
        """The long text that `base` answers to with other tokens in one part; the first of them is likely there.

        The token after that stays, so what it scores has moved by the one before it alone.
        """
        start, end = part
        ids = np.asarray(base.request.token_ids).copy()
        there = ids[start]
        ids[start:end] = self._others(ids[start:end])
        if end - start > 2:
            ids[start + 1] = base.request.token_ids[start + 1]
        if base.top_ids_SK is not None:
            likely = [token for token in base.top_ids_SK[base.row(start)] if token != there]
            ids[start] = likely[rank % len(likely)] if likely else ids[start]
        return ids

    def _parts(self, length: int) -> int:
        return max(2, min(PARTS, length // 5))

    def _tail(self, length: int) -> int:
        return TAIL if length >= 4 * PARTS * TAIL else 1

    def _others(self, ids: Ints) -> Ints:
        """Another token in place of each."""
        pool = np.arange(self.tokens) if self.tokens else self.pool
        place = np.searchsorted(np.sort(pool), ids)
        step = self.rng.integers(1, len(pool), len(ids))
        others: Ints = np.sort(pool)[(place + step) % len(pool)]
        return others
