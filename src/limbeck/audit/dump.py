"""What was read from a dump: rows of tokens with everything that was recorded for each.

Shape legend: L the tokens of one row, prompt included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from limbeck.errors import DataError
from limbeck.formatting import shown
from limbeck.records import Ints, Mask

Reals: TypeAlias = npt.NDArray[np.float64]

PER_TOKEN = ("student", "teacher", "sampler", "advantages", "losses", "weights")


@dataclass
class Row:
    """One sequence. What was recorded for its tokens is NaN where there is nothing.

    The prompt "12+34=" and the answer "46" with its end are nine tokens.
    """

    where: str  # "rollouts.parquet, row 3"
    index: int  # its place in the dump, from 0
    token_ids: Ints  # [L]
    start: int  # 6: tokens of the prompt; 0 where the dump does not say
    mask: Mask | None = None  # [L] what the loss was taken over; None: not recorded
    step: int | None = None
    values: dict[str, Reals] = field(default_factory=dict)  # [L] by the names in `PER_TOKEN`
    temperature: float | None = None  # that the dump itself claims
    scale: float = 1.0  # of its logits, so that its own temperature stands where the audit's does
    step_loss: float | None = None  # the loss of the whole step, as it was logged
    reward: float | None = None
    finish: str | None = None  # "stop" or "length"
    prompt_id: str | None = None
    prompt_text: str | None = None
    response_text: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    teacher_top: tuple[Ints, Reals] | None = None  # [L, K] ids and log-probs; -1 where there are none
    broken: dict[str, Mask] = field(default_factory=dict)  # [L] NaN or infinite as it was recorded, where any is

    @property
    def trained(self) -> Mask:
        """[L] the mask; without one, the response."""
        return self.mask if self.mask is not None else np.arange(len(self.token_ids)) >= max(1, self.start)

    def recorded(self, name: str) -> Reals:
        """[L] what was recorded under a name, NaN where nothing was."""
        return self.values.get(name, np.full(len(self.token_ids), np.nan))


@dataclass
class Dump:
    """All rows, in order of their steps."""

    kind: str  # "slime's rollout dump"
    rows: list[Row]
    lacks: dict[str, str] = field(default_factory=dict)  # what this kind of file never has, and why
    complete: bool = True  # whether its steps are whole: ours keep a few rollouts of each

    def has(self, name: str) -> bool:
        return any(np.isfinite(row.recorded(name)).any() for row in self.rows)


def make_row(
    where: str,
    index: int,
    prompt_ids: Sequence[int],
    response_ids: Sequence[int],
    *,
    mask: Sequence[Any] | None = None,
    values: Mapping[str, Sequence[Any] | float | None] | None = None,
    top: tuple[Any, Any] | None = None,
    **more: Any,
) -> Row:
    """A row from lists that are as long as the response, or as the whole sequence.

    One number in place of a list is that number at each token of the response. Raises `DataError` for another length
    or what is no number.
    """
    for part in (prompt_ids, response_ids):
        _must_be_list(where, part)
    ids = _ints(where, "token ids", [*prompt_ids, *response_ids])
    start, total = len(prompt_ids), len(ids)
    if total < 2:
        raise DataError(f"{where} has {total} tokens, expected at least 2: nothing precedes a first token.")
    row = Row(where, index, ids, start, **more)
    if mask is not None:
        row.mask = _spread(where, "mask", mask, start, total, 0.0) > 0
        row.mask[0] = False  # nothing predicts it
    for name, given in (values or {}).items():
        if given is None:
            continue
        if isinstance(given, int | float):
            row.values[name] = np.where(np.arange(total) >= start, float(given), np.nan)
            _mark_broken(row, name, [given] * (total - start))
        else:
            row.values[name] = _spread(where, name, given, start, total, np.nan)
            _mark_broken(row, name, given)
    if top is not None:
        row.teacher_top = _tops(where, top, start, total)
    return row


def _must_be_list(where: str, ids: object) -> None:
    if not isinstance(ids, list | tuple | np.ndarray):
        raise DataError(f"{where}: token ids are {shown(ids)}, expected a list of whole numbers.")


def _mark_broken(row: Row, name: str, given: Sequence[Any]) -> None:
    """Keep apart what is NaN or infinite from what was not recorded; neither is compared with anything."""
    bad = np.asarray([v is not None and not np.isfinite(float(v)) for v in given], dtype=bool)
    if bad.any():
        row.broken[name] = np.concatenate([np.zeros(len(row.token_ids) - len(bad), bool), bad])
        row.values[name] = np.where(row.broken[name], np.nan, row.values[name])


def _ints(where: str, name: str, values: Sequence[Any]) -> Ints:
    try:
        numbers = np.asarray(values)
        ids = numbers.astype(np.int64)
        whole = numbers.dtype.kind in "iu" or not len(numbers) or bool((numbers == ids).all())
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole or numbers.dtype.kind not in "iuf":
        raise DataError(f"{where}: {name} are {shown(values)}, expected whole numbers.")
    if ids.ndim != 1 or (ids < 0).any():
        raise DataError(f"{where}: {name} are {shown(values)}, expected a list of ids from 0.")
    return ids


def _spread(where: str, name: str, given: Sequence[Any], start: int, total: int, nothing: float) -> Reals:
    """[L] a list as long as the response or the whole, at its tokens."""
    try:
        values = np.asarray([np.nan if v is None else float(v) for v in given], dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{where}: {name} is {shown(given)}, expected a list of numbers.") from None
    if len(values) not in (total, total - start):
        raise DataError(
            f"{where}: {name} has {len(values)} entries, expected one for each of {total - start} tokens of the "
            f"response, or of {total} of the whole."
        )
    values = np.where(np.isnan(values), nothing, values)
    return np.concatenate([np.full(total - len(values), nothing), values])


def _tops(where: str, top: tuple[Any, Any], start: int, total: int) -> tuple[Ints, Reals] | None:
    ids, logprobs = top
    if len(ids) != len(logprobs) or len(ids) not in (total, total - start):
        raise DataError(f"{where}: the teacher's top tokens have {len(ids)} positions, expected {total - start}.")
    width = max((len(row or ()) for row in ids), default=0)
    if width == 0:
        return None
    ids_LK, logprobs_LK = np.full((total, width), -1, np.int64), np.full((total, width), np.nan)
    for place, (row_ids, row_logprobs) in enumerate(zip(ids, logprobs, strict=True), start=total - len(ids)):
        count = len(row_ids or ())
        if count != len(row_logprobs or ()):
            raise DataError(f"{where}: {count} top ids but {len(row_logprobs or ())} log-probs at one position.")
        if count:
            ids_LK[place, :count], logprobs_LK[place, :count] = row_ids, row_logprobs
    return ids_LK, logprobs_LK


def without_padding(row: Row, pads: Ints) -> Row:
    """The row without the ids at both ends that `pads` [L] marks, where nothing was recorded as trained.

    `pads` is 1 for a token that the dump itself calls padding.
    """
    keep = np.flatnonzero(pads == 0)
    if len(keep) == len(row.token_ids) or len(keep) < 2:
        return row
    first, last = int(keep[0]), int(keep[-1]) + 1
    cut = slice(first, last)
    row.token_ids, row.start = row.token_ids[cut], max(0, row.start - first)
    row.mask = None if row.mask is None else row.mask[cut]
    row.values = {name: values[cut] for name, values in row.values.items()}
    row.broken = {name: values[cut] for name, values in row.broken.items()}
    if row.teacher_top is not None:
        row.teacher_top = (row.teacher_top[0][cut], row.teacher_top[1][cut])
    return row
