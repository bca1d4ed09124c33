"""Which of the teacher's answers a step may go on with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from limbeck.errors import TeacherError
from limbeck.records import Failure

T = TypeVar("T")


def enough(answers: Sequence[T | Failure], least: float) -> list[int]:
    """Places of the answers that are not failures, at least a share `least` of them.

    Raises `TeacherError` for fewer, naming the first failure: the step is not made.
    """
    kept = [index for index, answer in enumerate(answers) if not isinstance(answer, Failure)]
    if len(kept) < least * len(answers) or (answers and not kept):
        failures = [answer for answer in answers if isinstance(answer, Failure)]
        first = failures[0]
        why = f"{first.kind}: {first.message.rstrip('.')}."
        raise TeacherError(
            f"{len(failures)} of {len(answers)} responses could not be scored, but teacher.min_scored_fraction = "
            f"{least}. The first is of prompt {first.prompt_id!r}: {why} Nothing was updated; "
            "start the same command again to go on from the last checkpoint."
        )
    return kept
