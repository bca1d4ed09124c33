"""Prompts from the rows of a file or a data set.

    {"prompt": "12+34=", "answer": 46}                                      raw text, or one user message
    {"messages": [{"role": "user", "content": "12+34="}], "answer": "46"}   a chat

    source, held_out_source = of_file(section)
    task = Rows(section, source, held_out_source, encoder, grader, seed=0, longest_prompt=None)

Every error names the file and line, or the data set and row.
"""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Sequence

from limbeck.config.task import DatasetTaskConfig, FileTaskConfig
from limbeck.errors import DataError
from limbeck.records import Prompt
from limbeck.tasks.columns import to_prompt, unused, unused_columns_message
from limbeck.tasks.graders import Exact, Grader, Regex
from limbeck.tasks.prompts import Encoder, fit
from limbeck.tasks.sources import Source, check_size

logger = logging.getLogger("limbeck")


class Rows:
    """Prompts from rows. Too long ones are dropped before anything is held out.

    Without rows of their own, the held-out ones are chosen by the seed and removed from `train`.
    Ids are unique over both. Raises `DataError` for a row that cannot be read and for too few rows.
    """

    def __init__(
        self,
        section: FileTaskConfig | DatasetTaskConfig,
        source: Source,
        held_out_source: Source | None,
        encoder: Encoder,
        grader: Grader | None,
        seed: int,
        longest_prompt: int | None,
    ) -> None:
        self._grader = grader
        self.dropped = 0
        self._section, self._encoder, self._longest = section, encoder, longest_prompt
        self._unused: set[str] = set()
        seen: dict[str, str] = {}
        train = self._read(source, seen)
        if held_out_source is not None:
            chosen, _ = _choose(self._read(held_out_source, seen), section.held_out, seed, held_out_source.name)
        else:
            chosen, train = _choose(train, section.held_out, seed, source.name, leave=1)
        self.train: Sequence[Prompt] = train
        self.held_out: Sequence[Prompt] = chosen
        self._warn_of_overlap(source.name)
        self._warn_of_spellings(source.name)
        if self._unused:
            logger.warning("%s: columns that are not used: %s", source.name, unused_columns_message(self._unused))

    def grade(self, prompt: Prompt, response: str) -> float | None:
        return None if self._grader is None else self._grader(prompt, response)

    def _read(self, source: Source, seen: dict[str, str]) -> list[Prompt]:
        """The prompts that fit. `seen` maps each id to where it was first seen."""
        prompts = []
        for row in source.rows:
            try:
                check_size(row)
                prompt = to_prompt(row, source.task, self._section.columns, self._encoder)
                if self._grader is not None:
                    self._grader.check(prompt)
            except DataError as error:
                raise DataError(f"{row.where}: {error}") from error.__cause__
            if prompt.id in seen:
                raise DataError(
                    f"{row.where}: the id {prompt.id!r} is already that of {seen[prompt.id]}. Make ids "
                    "unique over training and held-out rows, or point task.columns.id at a column that is "
                    "not there, to number the rows."
                )
            seen[prompt.id] = row.where
            self._unused |= unused(row.values, self._section.columns)
            prompts.append(prompt)
        if not prompts:
            raise DataError(f"{source.name} has no rows; expected at least one prompt")
        fitting = fit(prompts, self._longest, self._section.too_long)
        self.dropped += len(prompts) - len(fitting)
        return fitting

    def _warn_of_overlap(self, name: str) -> None:
        held_out = {prompt.token_ids for prompt in self.held_out}
        shared = sum(prompt.token_ids in held_out for prompt in self.train)
        if shared:
            logger.warning(
                "%s: %d of %d prompts to train on are also held out, word for word: held-out results will "
                "flatter the student", name, shared, len(self.train),
            )  # fmt: skip

    def _warn_of_spellings(self, name: str) -> None:
        """72.0 and 72 are two texts; whoever compares texts should know that the data has such numbers."""
        if not isinstance(self._grader, Exact | Regex):
            return
        answers = [prompt.answer or "" for prompt in (*self.train, *self.held_out)]
        odd = [answer for answer in answers if _OTHER_SPELLING.fullmatch(answer)]
        if odd:
            logger.warning(
                "%s: %d of %d answers are numbers that are often written otherwise, such as %r, and task.grader "
                'compares text: 72.0 is not 72. To compare numbers set task.grader.kind = "numeric"',
                name, len(odd), len(answers), odd[0],
            )  # fmt: skip


_OTHER_SPELLING = re.compile(r"[-+]?[0-9]+(\.[0-9]*0|(\.[0-9]+)?[eE][-+]?[0-9]+)")


def _choose(
    prompts: list[Prompt], count: int, seed: int, name: str, leave: int = 0
) -> tuple[list[Prompt], list[Prompt]]:
    """`count` prompts chosen by the seed and the rest, at least `leave` of them, both in order."""
    most = len(prompts) - leave
    if count > most:
        raise DataError(
            f"task.held_out = {count}, but {name} has only {len(prompts)} prompts"
            + (", of which at least one must be left to train on" if leave else "")
            + ". Add rows"
            + (f", or set task.held_out to at most {most}." if most else ".")
        )
    chosen = set(random.Random(seed).sample(range(len(prompts)), count))
    return (
        [prompt for index, prompt in enumerate(prompts) if index in chosen],
        [prompt for index, prompt in enumerate(prompts) if index not in chosen],
    )
