"""What one request may ask, judged before any work is done: sequences, characters, tokens, ids, bytes of the answer.

Every bound of an answer follows from the request: positions times what is asked at each. `Cost` is what a request takes
in memory until its answer is read; a request waits in the queue until the server has room for that.

Shape legend: n answered positions of a sequence, K top tokens, J listed tokens, d hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from limbeck.config.values import HiddenDtype
from limbeck.records import ScoreRequest
from limbeck.serve.settings import ServeSettings
from limbeck.wire.score import WireError, asked_ids, support_size, wants_states
from limbeck.wire.states import bytes_of

MB = 2**20
LONGEST = 2**17  # tokens, of a model whose config does not say
CHARACTERS_A_TOKEN = 16  # a text that fits into the context has about 4
CHARACTERS = 2**19  # of one text: a tokenizer needs half a kilobyte of memory for each
ROOM = 8  # times the largest body, or answer: what those of all requests under way may hold


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, and what SGLang's schema lets a client ask for beside it.

    The request's support: "sampled"; K for the most likely too; ids [S, K] for those; "full" for hidden states alone.
    """

    request: ScoreRequest
    listed: tuple[int, ...] = ()  # tokens whose log-probs are wanted at every position
    hidden: bool = False  # the final states too, with that of the last token, which predicts nothing
    hidden_dtype: HiddenDtype = "float32"  # in which states alone travel


@dataclass(frozen=True, slots=True)
class Size:
    """The most bytes that an answer of one schema has."""

    entry: int  # of a log-prob and its token
    number: int  # of one number of a hidden state
    sequence: int = 4096  # beside them, a name of 256 characters of 12 bytes included
    echo: int = 12  # of a repeated token id


@dataclass(frozen=True, slots=True)
class Cost:
    answer: int  # bytes on the wire, at most
    results: int  # bytes of arrays

    @property
    def held(self) -> int:
        """Chunks of scores are joined, and an answer is copied on its way out: twice each."""
        return 2 * self.results + 2 * self.answer


@dataclass(frozen=True, slots=True)
class Limits:
    """The settings, and what of the model matters. It travels to the process that reads bodies."""

    settings: ServeSettings
    vocabulary: int
    context: int | None
    width: int  # of a hidden state
    model: str  # as it was loaded

    @property
    def names(self) -> tuple[str, str]:
        """What a client may call the model."""
        return self.settings.name, self.model.rpartition(" ")[0]

    @property
    def longest(self) -> int:
        return self.settings.max_length or self.context or LONGEST

    @property
    def longest_text(self) -> int:
        """Characters."""
        return min(CHARACTERS_A_TOKEN * self.longest, CHARACTERS)

    @property
    def body(self) -> int:
        return self.settings.body_mb * MB

    @property
    def answer(self) -> int:
        return self.settings.answer_mb * MB

    def check_sequences(self, count: int) -> None:
        """Raises `WireError` (kind refused), as all of these do."""
        if not count:
            raise WireError("refused", "the request has no sequences")
        if count > self.settings.max_queue:
            raise WireError(
                "refused",
                f"{count} sequences in one request, this server's queue holds {self.settings.max_queue} (--max-queue): "
                "send fewer at a time",
            )

    def check_text(self, text: str, what: str) -> None:
        most = self.longest_text
        if len(text) > most:
            raise WireError(
                "refused",
                f"{what} has {len(text)} characters, more than the {most} this server tokenizes: send token ids "
                "(a sequence may have "
                f"{self.longest} tokens)",
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise WireError(
                "refused", f"{what} is not text: half of a surrogate pair at character {error.start}"
            ) from None

    def check_length(self, count: int) -> None:
        if count < 1:
            raise WireError("refused", "a sequence has no tokens")
        if count > self.longest:
            option = "--max-length" if self.settings.max_length else "the model's context"
            raise WireError("refused", f"{count} tokens, more than the {self.longest} this server takes ({option})")

    def check(self, asked: Sequence[Asked], size: Size) -> Cost:
        """What a request costs. Raises `WireError` for one beyond the limits."""
        self.check_sequences(len(asked))
        self._check_ids(min(asked[0].listed, default=0), max(asked[0].listed, default=0))  # one list for all
        for one in asked:
            ids = one.request.token_ids
            self.check_length(len(ids))
            self._check_ids(int(ids.min()), int(ids.max()))
            given = one.request.support
            if isinstance(given, np.ndarray) and given.size:
                self._check_ids(int(given.min()), int(given.max()))
            k, most = support_size(one.request), min(self.vocabulary, self.settings.max_top_k)
            if not 0 <= k <= most:
                what = f"{k} ids a position" if isinstance(given, np.ndarray) else f"top {str(k)[:40]}"
                why = "the model's vocabulary" if most == self.vocabulary else "--max-top-k"
                raise WireError("refused", f"{what} asked for, this server gives up to {most} ({why})")
        cost = self.cost(asked, size)
        if cost.answer > self.answer:
            raise WireError(
                "refused",
                f"the answer would have up to {cost.answer / MB:.0f} MB, more than the {self.settings.answer_mb} MB "
                "this server sends (--answer-mb): ask for fewer sequences, positions, top or listed tokens at a time",
            )
        return cost

    def cost(self, asked: Sequence[Asked], size: Size) -> Cost:
        answer = results = 0
        for one in asked:
            n, d = len(asked_ids(one.request)), self.width
            states = (n + 1) * d if one.hidden or wants_states(one.request) else 0
            sent = states * size.number
            if one.hidden_dtype != "float32" and wants_states(one.request):
                sent = n * (bytes_of(d, one.hidden_dtype) + 8)  # and two errors
            k, j = support_size(one.request), len(one.listed)
            entries = 0 if wants_states(one.request) else n * (1 + k + j)
            echoed = size.echo * len(one.request.token_ids)
            answer += size.sequence + entries * size.entry + sent + echoed
            results += 4 * states + 12 * entries + 8 * (len(one.request.token_ids) + n * k)
        return Cost(answer, results)

    def _check_ids(self, lowest: int, highest: int) -> None:
        if not (lowest >= 0 and highest < self.vocabulary):
            raise WireError(
                "refused",
                f"token ids are {str(lowest)[:40]} to {str(highest)[:40]}, but the vocabulary has {self.vocabulary}: "
                "another tokenizer?",
            )
