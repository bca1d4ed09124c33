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
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeAlias

from limbeck.config.task import DatasetTaskConfig, EvalDatasetConfig, EvalFileConfig, FileTaskConfig
from limbeck.errors import DataError
from limbeck.records import Prompt
from limbeck.tasks.columns import to_prompt, unused, unused_columns_message
from limbeck.tasks.graders import Exact, Grader, PythonFunction, Regex
from limbeck.tasks.layouts import Layouts
from limbeck.tasks.prompts import Encoder, fit
from limbeck.tasks.sources import Row, Source, check_size

logger = logging.getLogger("limbeck")
RowsConfig: TypeAlias = FileTaskConfig | DatasetTaskConfig | EvalFileConfig | EvalDatasetConfig


class Reader:
    """Reads rows as prompts that fit. Ids are unique over all that one reader reads.

    Raises `DataError` for a row that cannot be used, with the row's place, and where there are none.
    """

    def __init__(
        self, section: RowsConfig, encoder: Encoder, grader: Grader | None, longest_prompt: int | None
    ) -> None:
        self.section, self.encoder, self.grader, self.longest = section, encoder, grader, longest_prompt
        self.dropped = 0  # too long
        self._tables_are_answers = grader is None or isinstance(grader, PythonFunction)
        self._unused: set[str] = set()
        self._seen: dict[str, str] = {}  # where each id was first seen

    def read(self, source: Source) -> list[Prompt]:
        """All prompts of a source that fit, in order."""
        layouts = Layouts(self.section.columns, self.encoder.continued)
        prompts: list[Prompt] = []
        rows: list[Row] = []
        for row in source.rows:
            try:
                check_size(row)
                found = layouts.of(row.values, row.where)
                prompt = to_prompt(
                    row, source.task, self.section.columns, self.encoder, found, self._tables_are_answers
                )
                if self.grader is not None:
                    self.grader.check(prompt)
            except DataError as error:
                raise DataError(f"{row.where}: {error}") from error.__cause__
            self._unused |= unused(row.values, self.section.columns, found)
            prompts.append(prompt)
            rows.append(replace(row, values={}))
        if not prompts:
            raise DataError(f"{source.name} has no rows; expected at least one prompt")
        if layouts.numbers_rows([prompt.id for prompt in prompts]):
            prompts = [replace(prompt, id=row.default_id) for prompt, row in zip(prompts, rows, strict=True)]
        self._require_unique(prompts, rows)
        layouts.note(source.name)
        fitting = fit(prompts, self.longest, self.section.too_long)
        self.dropped += len(prompts) - len(fitting)
        return fitting

    def _require_unique(self, prompts: Sequence[Prompt], rows: Sequence[Row]) -> None:
        for prompt, row in zip(prompts, rows, strict=True):
            if prompt.id in self._seen:
                raise DataError(
                    f"{row.where}: the id {prompt.id!r} is already that of {self._seen[prompt.id]}. Make ids "
                    "unique over training and held-out rows, or point task.columns.id at a column that is "
                    "not there, to number the rows."
                )
            self._seen[prompt.id] = row.where

    def warn(self, name: str, prompts: Iterable[Prompt]) -> None:
        """Of what a person should know about all that was read."""
        if self._unused:
            logger.warning("%s: columns that are not used: %s", name, unused_columns_message(self._unused))
        self._warn_of_spellings(name, [prompt.answer or "" for prompt in prompts])

    def _warn_of_spellings(self, name: str, answers: Sequence[str]) -> None:
        """72.0 and 72 are two texts; whoever compares texts should know that the data has such numbers."""
        if not isinstance(self.grader, Exact | Regex):
            return
        odd = [answer for answer in answers if _OTHER_SPELLING.fullmatch(answer)]
        if odd:
            logger.warning(
                "%s: %d of %d answers are numbers that are often written otherwise, such as %r, and task.grader "
                'compares text: 72.0 is not 72. To compare numbers set task.grader.kind = "numeric"',
                name, len(odd), len(answers), odd[0],
            )  # fmt: skip


class Rows:
    """Prompts from rows. Too long ones are dropped before anything is held out.

    Without rows of their own, the held-out ones are chosen by the seed and removed from `train`. Raises `DataError` as
    `Reader` does, and for too few rows.
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
        reader = Reader(section, encoder, grader, longest_prompt)
        train = reader.read(source)
        if held_out_source is not None:
            chosen, _ = _choose(reader.read(held_out_source), section.held_out, seed, held_out_source.name)
        else:
            chosen, train = _choose(train, section.held_out, seed, source.name, leave=1)
        self.dropped = reader.dropped
        self.train: Sequence[Prompt] = train
        self.held_out: Sequence[Prompt] = chosen
        warn_of_overlap(source.name, train, chosen, "also held out")
        reader.warn(source.name, [*train, *chosen])

    def grade(self, prompt: Prompt, response: str) -> float | None:
        return None if self._grader is None else self._grader(prompt, response)


class EvaluationRows:
    """All rows of a source, to evaluate on. Raises `DataError` as `Reader` does."""

    train: Sequence[Prompt] = ()

    def __init__(
        self,
        section: EvalFileConfig | EvalDatasetConfig,
        source: Source,
        encoder: Encoder,
        grader: Grader | None,
        longest_prompt: int | None,
    ) -> None:
        self._grader = grader
        reader = Reader(section, encoder, grader, longest_prompt)
        self.held_out: Sequence[Prompt] = reader.read(source)
        self.dropped = reader.dropped
        reader.warn(source.name, self.held_out)

    def grade(self, prompt: Prompt, response: str) -> float | None:
        return None if self._grader is None else self._grader(prompt, response)


def warn_of_overlap(name: str, train: Sequence[Prompt], held_out: Sequence[Prompt], how: str) -> None:
    """Prompts that are trained on and evaluated on, word for word."""
    others = {prompt.token_ids for prompt in held_out}
    shared = sum(prompt.token_ids in others for prompt in train)
    if shared:
        logger.warning(
            "%s: %d of %d prompts to train on are %s, word for word: held-out results will "
            "flatter the student", name, shared, len(train), how,
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
