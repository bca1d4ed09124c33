"""Which of the teacher's tokens stands for each of the student's: special tokens differ where chat templates do.

    relabelling = relabelling_of(student_tokenizer, teacher_tokenizer)
    relabelling.to_teacher(ids)          the student's "<|im_end|>" as the teacher's "<|eot_id|>"

Each token of the teacher stands for exactly one of the student's. So the teacher's distribution over its tokens, read
by these names, is a distribution over the student's, and every divergence and support is exact. What the teacher has
no token for is `masked`: a position at which the student says it is left out of the loss, and counted.

What stands for a token is what the teacher's template uses for the same purpose, else the token of the same name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from limbeck.errors import ModelError
from limbeck.models.head import Head
from limbeck.records import Ints
from limbeck.teacher_views.template_tokens import TemplateTokens, template_tokens_of, tokens_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Relabelling:
    """`pairs` of the student's id and the teacher's, of tokens that differ: a permutation of these ids."""

    pairs: Mapping[int, int] = field(default_factory=dict)
    masked: Mapping[int, str] = field(default_factory=dict)  # the student's id, and why

    @property
    def is_identity(self) -> bool:
        return not self.pairs and not self.masked

    def to_teacher(self, ids: Ints) -> Ints:
        """Of any shape."""
        return _replaced(ids, self.pairs)

    def id_of(self, ours: int) -> int:
        """The teacher's, of one token."""
        return self.pairs.get(ours, ours)

    def to_student(self, ids: Ints) -> Ints:
        return _replaced(ids, self._back)

    def head(self, head: Head) -> Head:
        """The teacher's output head with its rows in the order of the student's ids.

        Raises `ModelError` where a token has no row in what student and teacher share.
        """
        if not self.pairs:
            return head
        most = max((*self.pairs, *self.pairs.values()))
        if most >= head.vocabulary:
            raise ModelError(
                f"the teacher's chat template uses token {most}, but student and teacher share ids 0 to "
                f"{head.vocabulary - 1} only. Resize the smaller output head, or set teacher.view.template to a "
                "template of tokens that both have."
            )
        import torch

        rows = torch.from_numpy(self.to_teacher(np.arange(head.vocabulary))).to(head.weight_Vd.device)
        bias_V = None if head.bias_V is None else head.bias_V.detach()[rows]
        return replace(head, weight_Vd=head.weight_Vd.detach()[rows], bias_V=bias_V)

    @cached_property
    def _back(self) -> dict[int, int]:
        return {theirs: ours for ours, theirs in self.pairs.items()}


def relabelling_of(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, stop_ids: Sequence[int] = ()
) -> Relabelling:
    """By what tokens are for, then by what they are written as. `stop_ids`: what else ends the student's answers."""
    found: dict[int, int] = {}
    why: dict[int, str] = dict.fromkeys(stop_ids, "end_of_turn")
    for purpose, ours, theirs in _counterparts(template_tokens_of(student), template_tokens_of(teacher)):
        why[ours] = purpose
        if theirs is not None and theirs not in found.values():
            found[ours] = theirs
    masked: dict[int, str] = {}
    vocabulary = teacher.get_vocab()
    for content, ours in _named(student, teacher, stop_ids).items():
        theirs = vocabulary.get(content)
        if ours in found:
            continue
        if theirs is None or (theirs in found.values() and theirs != ours):
            masked[ours] = why.get(ours, "special_token")
        elif theirs not in found.values():
            found[ours] = theirs  # else another token stands there, and it takes that one's place: a swap
    return Relabelling(_permutation(found), masked)


def _named(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, stop_ids: Sequence[int]
) -> dict[str, int]:
    """The student's tokens that are no plain text on one side at least, by what they are written as; by their ids."""
    vocabulary = student.get_vocab()
    special = [*tokens_of(teacher), *student.convert_ids_to_tokens(list(stop_ids))]
    named = {content: vocabulary[content] for content in special if content in vocabulary} | tokens_of(student)
    return dict(sorted(named.items(), key=lambda item: item[1]))


def _counterparts(student: TemplateTokens, teacher: TemplateTokens) -> list[tuple[str, int, int | None]]:
    """Why, the student's id and the teacher's, of what the student's template has."""
    pairs = [
        ("end_of_turn", student.end_of_turn, teacher.end_of_turn),
        ("thinking", student.opening, teacher.opening),
        ("thinking", student.closing, teacher.closing),
    ]
    seen: set[int] = set()
    found = []
    for why, ours, theirs in pairs:
        if ours is not None and ours not in seen:
            seen.add(ours)
            found.append((why, ours, theirs))
    return found


def _permutation(found: Mapping[int, int]) -> dict[int, int]:
    """`found`, which takes different ids to different ids, and what makes it a permutation; without fixed ids."""
    taken = set(found.values())
    left = sorted(set(found) - taken)  # ids of the teacher that stand for nothing yet
    whole = {**found, **dict(zip(sorted(taken - set(found)), left, strict=True))}
    return {ours: theirs for ours, theirs in whole.items() if ours != theirs}


def _replaced(ids: Ints, pairs: Mapping[int, int]) -> Ints:
    if not pairs:
        return ids
    replaced = ids.copy()
    for old, new in pairs.items():
        replaced[ids == old] = new
    return replaced
