"""The same text in a teacher's own tokens: `retokenized`.

What the student said between two special tokens is read as text and encoded by the teacher's tokenizer, apart from
what is around it: a group (`alignment.py`) never reaches over a turn's edge. A special token is one token on both
sides; one that the teacher has none for is spelled. The teacher reads what a reader would: U+FFFD for bytes that are
no UTF-8, and what its tokenizer makes of a text that it changes or has no token for. So whatever a student says is
compared, and nothing that it says is free. In no group, hence not trained on and counted, is only:

    open        the end of a response that was cut off, where a token of the teacher's or a character would go on
    no_text     tokens that say nothing, where there is no text at all, not even for the teacher

Blanks that the teacher's tokenizer drops are compared along with what comes next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from limbeck.errors import DataError
from limbeck.records import Failure, Groups, Ints, Prompt, Rollout, ScoreRequest, Scores, Support, View
from limbeck.teacher_views.alignment import Aligned, align, readable
from limbeck.teacher_views.same import name_of
from limbeck.teacher_views.spelling import Speller, continuations

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEAVE_OUT = "Or set teacher.min_scored_fraction below 1, and such responses are left out."
ONE_TO_ONE = Aligned(*(np.zeros(1, dtype=np.int64) for _ in range(3)))  # a special token each


class RetokenizedView:
    """See `protocols.TeacherView`. `student` and `teacher` say which text their tokens are."""

    def __init__(self, student: Speller, teacher: Speller, prompts: Callable[[Prompt], Sequence[int]]) -> None:
        self.student, self.teacher, self.prompts = student, teacher, prompts
        self.context: int | None = None  # the teacher's, in its own tokens, once it is known
        self._goes_on = continuations(teacher.token_bytes, student.token_bytes)
        atoms = zip(student.atoms, student.token_bytes.of(student.atoms), strict=True)
        self._apart = [id_ for id_, said in atoms if said is None or student.counterpart(id_, teacher) is not None]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The teacher's, with the chat template that it is used with."""
        return self.teacher.tokenizer

    def prompt_ids(self, prompt: Prompt) -> Sequence[int]:
        return self.prompts(prompt)

    def read(self, rollout: Rollout, view: View, scores: Scores) -> Scores:
        """As they are: what they are of is in `View.groups`."""
        return scores

    def see(self, rollout: Rollout, support: Support) -> View | Failure:
        prompt, name = rollout.prompt, name_of(rollout)
        start = len(prompt.token_ids)
        if tuple(rollout.token_ids[:start].tolist()) != tuple(prompt.token_ids):
            return Failure(
                name, "score", "other_prompt",
                "the rollout does not begin with the tokens of its prompt, so the teacher's prompt can take the place "
                "of nothing. A teacher with another tokenizer needs rollouts that begin with their prompt.",
            )  # fmt: skip
        sides = _Sides(list(self.prompts(prompt)))
        answers = prompt.chat is not None and not prompt.chat.continued  # what the first turn says is an answer
        for stretch in _stretches(rollout, start, self._apart):
            if stretch.special and not stretch.trained and self._counterpart(stretch) is None:
                return Failure(
                    name, "score", "special_token",
                    "what the student was shown between its turns has the special token "
                    f"{self.student.atoms[int(stretch.ids[0])]!r}, for which {self.teacher.name} has none. Take chat "
                    "templates with the same special tokens.",
                )  # fmt: skip
            try:
                self._add(sides, stretch, answers and stretch.first and stretch.trained)
            except DataError as error:
                return Failure(name, "score", "no_tokens", f"{error} {LEAVE_OUT}")
        if self.context is not None and len(sides.ids) > self.context:
            return Failure(
                name, "score", "too_long",
                f"prompt and response are {len(sides.ids)} tokens of {self.teacher.name}, but the teacher's context is "
                f"{self.context}. Lower rollout.max_tokens, which counts the student's tokens. {LEAVE_OUT}",
            )  # fmt: skip
        return sides.view(name, rollout)

    def _counterpart(self, stretch: _Stretch) -> int | None:
        return self.student.counterpart(int(stretch.ids[0]), self.teacher)

    def _add(self, sides: _Sides, stretch: _Stretch, answer: bool) -> None:
        """Raises `DataError` for a text that the teacher has no tokens of its own for."""
        theirs = self._counterpart(stretch) if stretch.special else None
        if theirs is not None:
            sides.add([theirs], ONE_TO_ONE if stretch.trained else None)
        else:
            self._add_text(sides, stretch, answer and not stretch.special)

    def _add_text(self, sides: _Sides, stretch: _Stretch, answer: bool) -> None:
        """A text without what stands before it on the student's side, after what stands there on the teacher's.

        A student that says nothing of what its tokenizer and template would put there is read as it stands.
        """
        pieces = self.student.say(stretch.ids)
        special = self.student.special(stretch.before)
        blank = self.student.blank(self.student.lead if answer else "", special).encode()
        said = next(n for n in range(len(blank), -1, -1) if b"".join(pieces).startswith(blank[:n]))
        shown = readable(_without_start(pieces, said), stretch.cut)
        lead, after = "", None
        if (said or not blank) and (stretch.first or special is not None):
            lead, after = self.teacher.lead if answer else "", self.teacher.special(sides.ids[-1])
        theirs = self.teacher.encode(shown.text, lead, after)
        if not stretch.trained:
            sides.add(theirs.ids)
            return
        sides.text_bytes += len(shown.text.encode())
        if shown.text and not theirs.ids and not stretch.cut:
            sides.hold(len(pieces), len(shown.text.encode()))
            return
        found = align(shown.ends, theirs.ends)
        alike = len(found.sizes) > 1 or said == len(self.teacher.blank(lead, after).encode())
        if stretch.cut and not (alike and self._is_closed(found, theirs.ids)):
            found = found.without_last()
        sides.left_out["open" if shown.text else "no_text"] += int((found.student < 0).sum())
        sides.add(theirs.ids, found)

    def _is_closed(self, found: Aligned, theirs: Sequence[int]) -> bool:
        """Whether the last group is the same event on both sides, though nobody knows what would have come after it.

        One token each, and the teacher has no longer token with that beginning which the student could not have said as
        one token too.
        """
        last = len(found.sizes) - 1
        ours, other = np.flatnonzero(found.student == last), np.flatnonzero(found.teacher == last)
        return last < 0 or (len(ours) == len(other) == 1 and theirs[int(other[0])] not in self._goes_on)


@dataclass
class _Sides:
    """What has been put on both sides so far."""

    ids: list[int]  # the teacher's tokens
    scored: list[bool] = field(default_factory=list)  # of those after its prompt
    student: list[int] = field(default_factory=list)  # groups
    teacher: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    text_bytes: int = 0
    held: int = 0  # of the student's last tokens, those that will be in the next group
    held_bytes: int = 0

    def hold(self, count: int, size: int) -> None:
        """The student's next `count` tokens say `size` bytes that the teacher does not read."""
        self.student += [len(self.sizes)] * count
        self.held, self.held_bytes = self.held + count, self.held_bytes + size

    def _let_go(self, sizes: Sequence[int]) -> list[int]:
        """The next groups' sizes with what was held. Without a next group it is in none."""
        count, size, self.held, self.held_bytes = self.held, self.held_bytes, 0, 0
        if sizes or not count:
            return [size + first for first in sizes[:1]] + list(sizes[1:])
        self.student[-count:] = [-1] * count
        self.left_out["no_text"] += count
        return []

    def add(self, ids: Sequence[int], aligned: Aligned | None = None) -> None:
        """Tokens of the teacher. `aligned` where the student said them."""
        self.ids += ids
        self.scored += [aligned is not None] * len(ids)
        sizes = self._let_go([] if aligned is None else aligned.sizes.tolist())
        if aligned is not None:
            before = len(self.sizes)
            for side, groups in ((self.student, aligned.student), (self.teacher, aligned.teacher)):
                side += np.where(groups < 0, -1, groups + before).tolist()
            self.sizes += sizes

    def view(self, name: str, rollout: Rollout) -> View:
        self._let_go([])
        scored = np.zeros(len(self.ids), dtype=bool)
        scored[len(self.ids) - len(self.scored) :] = self.scored
        ids, temperature = np.asarray(self.ids, dtype=np.int64), rollout.sampling.temperature
        request = ScoreRequest(name, ids, scored, temperature, "sampled", rollout.prompt.teacher)
        student, teacher, sizes = (
            np.asarray(numbers, dtype=np.int64) for numbers in (self.student, self.teacher, self.sizes)
        )
        groups = Groups(student, teacher, request.scored_ids, sizes, self.text_bytes)
        return View(request, student, teacher, dict(+self.left_out), groups)


@dataclass(frozen=True)
class _Stretch:
    """Tokens in a row that are text, or one special token, of one turn."""

    ids: Ints
    special: bool
    trained: bool
    first: bool  # it comes right after the prompt
    before: int  # the token before it
    cut: bool  # it ends with a turn that was cut off at its length


def _stretches(rollout: Rollout, start: int, apart: Sequence[int]) -> Iterator[_Stretch]:
    """What follows the prompt. `apart` are the tokens that stand for themselves."""
    ids, trained = rollout.token_ids, rollout.trained
    special = np.isin(ids, apart)
    cuts = {turn.end for turn in rollout.turns if turn.finish == "length"}
    edges = cuts | {edge for turn in rollout.turns for edge in (turn.start, turn.end)}
    begin = start
    for end in range(start + 1, len(ids) + 1):
        here = slice(begin, end)
        if end == len(ids) or special[begin] or special[end] or trained[end] != trained[begin] or end in edges:
            yield _Stretch(
                ids[here], bool(special[begin]), bool(trained[begin]), begin == start, int(ids[begin - 1]), end in cuts
            )
            begin = end


def _without_start(pieces: Sequence[bytes], length: int) -> list[bytes]:
    """Pieces without their first `length` bytes."""
    left = []
    for piece in pieces:
        left.append(piece[length:])
        length = max(0, length - len(piece))
    return left
