"""Where student and teacher disagree, summed over the recorded rollouts of some steps.

    disagreement.summary("late", task="math")     the latest third of the steps, beside the first third

Each file is summed once (`kl_sums.py`) and the sums are kept, so asking again, or for other steps, costs little.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from limbeck.errors import LimbeckError
from limbeck.formatting import shown
from limbeck.view.kl_sums import ABOVE, COLUMNS, SHOWN_PLACES, SUMS, Cell, Part, sum_up
from limbeck.view.reading import first_line, stamp_of
from limbeck.view.rollouts import Rollouts, read_columns

SHOWN_TOKENS = 40
SHOWN_BINS = 120
SHOWN_GROUPS = 40
DIMENSIONS: dict[str, Callable[[Cell], str | int]] = {
    "task": lambda cell: cell.task,
    "teacher": lambda cell: cell.teacher,
    "turn": lambda cell: cell.turn,
}


class NoStepsError(LimbeckError):
    """What was given is no choice of steps."""


@dataclass(frozen=True)
class _Chosen:
    """The cells of some steps."""

    parts: list[tuple[Part, list[Cell]]]

    @property
    def cells(self) -> list[Cell]:
        return [cell for _, cells in self.parts for cell in cells]

    @property
    def rollouts(self) -> int:
        return sum(len(set().union(*(cell.rows.tolist() for cell in cells))) for _, cells in self.parts if cells)

    @property
    def count(self) -> int:
        return int(sum(cell.sums[:, 0].sum() for cell in self.cells))

    @property
    def kl(self) -> float:
        return float(sum(cell.sums[:, 1].sum() for cell in self.cells))

    def headline(self) -> dict[str, Any]:
        """How much in all, and how concentrated it is."""
        special = float(sum(cell.sums[cell.special, 1].sum() for cell in self.cells))
        above = np.sum([cell.above for cell in self.cells], axis=0)
        steps = [part.step for part, cells in self.parts if cells]
        return {
            "rollouts": self.rollouts,
            "steps": [min(steps), max(steps)],
            "tokens_seen": self.count,
            "kl_total": self.kl,
            **_mean(self),
            "special_share": special / self.kl if self.kl > 0 else 0.0,
            "above": [
                {"nats": least, "tokens": float(count) / self.count, "kl": float(kl) / self.kl if self.kl > 0 else 0.0}
                for least, (count, kl) in zip(ABOVE, above, strict=True)
            ],
            "positions": _positions(self.cells),
        }


class Disagreement:
    """Over the rollouts of one run."""

    def __init__(self, rollouts: Rollouts) -> None:
        self.rollouts = rollouts
        self._parts: dict[str, Part | str] = {}
        self._lock = threading.Lock()

    def summary(self, steps: str = "late", **wanted: str | int) -> dict[str, Any]:
        """Of the steps: all of it, by task, teacher and turn, by token and position; the single places with the most.

        `steps`: "late" (the latest third, with `before` of the first third beside it), "early", "all", or "20-90".
        `wanted`: a task, teacher or turn. Raises `NoStepsError` for other steps.
        """
        with self._lock:
            found = [self._part(name) for name in self.rollouts.names()]
        parts = [part for part in found if isinstance(part, Part)]
        spans = _spans([part.step for part in parts if part.cells])
        first, last = spans[steps] if steps in spans else _range(steps)
        problems = [part for part in found if isinstance(part, str)]
        every = {name: sorted({of(cell) for part in parts for cell in part.cells}) for name, of in DIMENSIONS.items()}
        base = {"rollouts": 0, "tokens_seen": 0, "spans": spans, "choices": every}
        now = _choose(parts, first, last, wanted)
        if not now.count:
            return {**base, "problems": [*problems, "No recorded tokens in these steps."]}
        before = _choose(parts, *spans["early"], wanted) if steps == "late" else _Chosen([])
        if not before.count or spans["early"][1] >= spans["late"][0]:
            before = _Chosen([])
        places = sorted((place for cell in now.cells for place in cell.places), key=lambda place: -place["kl"])
        tokens = _tokens(now, before)
        return {
            **base,
            **now.headline(),
            "exact": all(part.exact for part, cells in now.parts if cells),
            "tokens": _most(tokens),
            "special": sorted((t for t in tokens if t["special"]), key=lambda t: -t["count"])[:SHOWN_TOKENS],
            "groups": {
                name: _groups(parts, (first, last), spans["early"] if before.count else None, name, wanted)
                for name in DIMENSIONS
            },
            "places": places[:SHOWN_PLACES],
            "before": before.headline() if before.count else None,
            "problems": problems,
        }

    def _part(self, name: str) -> Part | str | None:
        """The sums of one file, or what is wrong with it."""
        path = self.rollouts.folder / name
        stamp = stamp_of(path)
        if stamp is None:
            return None
        known = self._parts.get(name)
        if known is None or isinstance(known, str) or known.stamp != stamp:
            try:
                known = sum_up(name, stamp, read_columns(path, list(COLUMNS)))
            except Exception as error:
                known = f"rollouts/{name} is skipped: {first_line(error)}"
            self._parts[name] = known
        return known


def _spans(steps: Sequence[int]) -> dict[str, tuple[int, int]]:
    """The first and the last third of the steps that were made, and all of them."""
    newest = max(steps, default=0)
    third = newest // 3
    return {"late": (newest - third + 1 if third else newest, newest), "early": (0, third), "all": (0, newest)}


def _range(text: str) -> tuple[int, int]:
    found = re.fullmatch("([0-9]{1,15})-([0-9]{1,15})", text)
    if found is None:
        raise NoStepsError(f"steps = {shown(text)}, expected late, early, all, or two numbers such as 20-90")
    return int(found[1]), int(found[2])


def _choose(parts: Sequence[Part], first: int, last: int, wanted: dict[str, Any]) -> _Chosen:
    def is_wanted(cell: Cell) -> bool:
        return all(DIMENSIONS[name](cell) == value for name, value in wanted.items())

    return _Chosen([(p, [c for c in p.cells if is_wanted(c)]) for p in parts if first <= p.step <= last])


def _split(chosen: _Chosen, of: Callable[[Cell], str | int]) -> dict[str | int, _Chosen]:
    """By task, teacher or turn."""
    found: dict[str | int, _Chosen] = {}
    for part, cells in chosen.parts:
        for value in {of(cell) for cell in cells}:
            found.setdefault(value, _Chosen([])).parts.append((part, [cell for cell in cells if of(cell) == value]))
    return found


def _mean(chosen: _Chosen) -> dict[str, float | None]:
    """KL a token and its standard error, clustered by prompt (Cochran 1977, section 6.3); None for a single prompt."""
    prompts = np.concatenate([np.sum([cell.prompts for cell in cells], axis=0) for _, cells in chosen.parts if cells])
    prompts = prompts[prompts[:, 0] > 0]
    count, total = prompts.sum(axis=0)
    mean, clusters = total / count, len(prompts)
    spread = ((prompts[:, 1] - mean * prompts[:, 0]) ** 2).sum()
    se = float(np.sqrt(spread * clusters / (clusters - 1)) / count) if clusters > 1 else None
    return {"kl_mean": float(mean), "kl_se": se}


def _groups(
    parts: Sequence[Part], now: tuple[int, int], early: tuple[int, int] | None, name: str, wanted: dict[str, Any]
) -> list[dict[str, Any]]:
    """One entry a task, teacher or turn, whichever of them is wanted: most KL first, turns in order."""
    others, of = {key: value for key, value in wanted.items() if key != name}, DIMENSIONS[name]
    every = _choose(parts, *now, others)
    earlier = _split(_choose(parts, *early, others), of) if early else {}
    found: list[dict[str, Any]] = []
    for value, mine in _split(every, of).items():
        before = earlier.get(value)
        found.append(
            {
                "name": value,
                "rollouts": mine.rollouts,
                "tokens": mine.count,
                "share": mine.kl / every.kl if every.kl > 0 else 0.0,
                **_mean(mine),
                "before": _mean(before) if before else None,
            }
        )
    return sorted(found, key=lambda g: g["name"] if name == "turn" else -g["share"])[:SHOWN_GROUPS]


def _tokens(now: _Chosen, before: _Chosen) -> list[dict[str, Any]]:
    """One entry a different token, with the share of the KL that it has, and had."""
    earlier = {id_: row for id_, _, _, row in _summed(before.cells)} if before.count else {}
    return [
        {
            "token_id": id_,
            "token": name,
            "special": special,
            "count": int(row[0]),
            "kl": float(row[1]),
            "kl_mean": float(row[1] / row[0]),
            "log_ratio_mean": float(row[2] / row[0]),
            "student_p": float(row[3] / row[0]),
            "teacher_p": float(row[4] / row[0]),
            "per_thousand": 1000 * float(row[1]) / now.count,
            "before": _earlier(earlier.get(id_), before.count) if before.count else None,
        }
        for id_, name, special, row in _summed(now.cells)
    ]


def _earlier(row: Any, count: int) -> dict[str, float | None]:
    """Of a token that was not sampled then there is no mean."""
    if row is None:
        return {"count": 0, "kl_mean": None, "per_thousand": 0.0}
    return {"count": int(row[0]), "kl_mean": float(row[1] / row[0]), "per_thousand": 1000 * float(row[1]) / count}


def _summed(cells: Sequence[Cell]) -> list[tuple[int, str, bool, Any]]:
    """Id, name, whether it is special, and the sums of each different token."""
    names = [name for cell in cells for name in cell.names]
    special = np.concatenate([cell.special for cell in cells])
    ids, first, inverse = np.unique(
        np.concatenate([cell.ids for cell in cells]), return_index=True, return_inverse=True
    )
    sums = np.zeros((len(ids), len(SUMS)))
    np.add.at(sums, inverse, np.concatenate([cell.sums for cell in cells]))
    return [(int(i), names[at], bool(special[at]), row) for i, at, row in zip(ids, first, sums, strict=True)]


def _most(tokens: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those with the most KL, and those whose part of it changed most: whichever way a reader sorts them."""

    def change(token: dict[str, Any]) -> float:
        return float(token["per_thousand"] - token["before"]["per_thousand"]) if token["before"] else 0.0

    orders: list[Callable[[dict[str, Any]], float]] = [lambda t: -t["kl"], lambda t: -change(t), change]
    chosen = {t["token_id"] for order in orders for t in sorted(tokens, key=order)[:SHOWN_TOKENS]}
    return sorted((t for t in tokens if t["token_id"] in chosen), key=lambda t: -t["kl"])


def _positions(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Mean KL by position in the response, in at most `SHOWN_BINS` bins, with its standard error."""
    length = max(len(cell.positions) for cell in cells)
    total = np.zeros((length, 3))
    for cell in cells:
        total[: len(cell.positions)] += cell.positions
    width = -(-length // SHOWN_BINS)
    bins = []
    for start in range(0, length, width):
        count, sum_, square = total[start : start + width].sum(axis=0)
        if not count:
            continue
        mean = sum_ / count
        variance = max(0.0, square / count - mean**2)
        bins.append(
            {
                "start": start,
                "end": min(start + width, length) - 1,
                "count": int(count),
                "kl_mean": float(mean),
                "se": float(np.sqrt(variance / count)),
                "kl": float(sum_),
            }
        )
    return bins
