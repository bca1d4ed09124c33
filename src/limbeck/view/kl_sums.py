"""Where student and teacher disagree in one file of recorded rollouts, summed into short arrays.

What has the same task, teacher and turn is one cell, so that any choice of these is a choice of cells. KL is the exact
one at the position where the token was sampled; the sampled log-ratio where there is no exact one.

Watched prompts come again at every step and would count too much: they are used only where a run recorded nothing else.

Legend: N tokens of all rollouts end to end, U different tokens, P positions, C prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from limbeck.view.reading import Stamp

COLUMNS = (
    "step", "source", "prompt_id", "task", "teacher", "turns", "token_ids", "tokens", "special", "student_logprob",
    "teacher_logprob", "reverse_kl",
)  # fmt: skip
OPTIONAL = ("prompt_id", "task", "teacher", "turns")  # which first versions did not record, or other programs do not
SUMS = ("count", "kl", "log_ratio", "student_p", "teacher_p")
ABOVE = (0.1, 1.0)  # nats: a token that disagrees a little, and one that does a lot
SHOWN_PLACES = 30
LARGEST = 1e6  # nats at one token: more is a damaged file's, and sums of it would not be finite
CONTEXT = 12  # tokens before a place that are shown with it
MOST_TURNS = 20  # later ones count as this one


@dataclass(frozen=True)
class Cell:
    """The sums of what has one task, teacher and turn. Turns of the student are counted from 1."""

    task: str
    teacher: str
    turn: int
    rows: np.ndarray  # which rollouts of the file
    ids: np.ndarray  # [U] the different tokens
    names: list[str]  # [U]
    special: np.ndarray  # [U]
    sums: np.ndarray  # [U, len(SUMS)]
    positions: np.ndarray  # [P, 3] count, sum and sum of squares of the KL at each position
    prompts: np.ndarray  # [C, 2] count and sum of the KL of each prompt of the file
    above: np.ndarray  # [len(ABOVE), 2] count and sum of the KL of tokens with more than that
    places: list[dict[str, Any]]


@dataclass(frozen=True)
class Part:
    """The sums of one file."""

    stamp: Stamp
    step: int
    exact: bool
    cells: list[Cell]


def sum_up(name: str, stamp: Stamp, table: Any) -> Part:
    """Raises `ValueError` for a file without the columns this needs."""
    missing = [column for column in COLUMNS if column not in table.column_names and column not in OPTIONAL]
    if missing:
        raise ValueError(f"it has no column {', '.join(missing)}.")
    numbers = np.arange(table.num_rows)
    train = table["source"].to_numpy(zero_copy_only=False) == "train"
    if train.any():
        numbers, table = numbers[train], table.filter(train)
    step = int(table["step"][0].as_py()) if table.num_rows else 0
    tokens = _Tokens(name, step, numbers, table)
    return Part(stamp, step, tokens.exact, [tokens.cell(key, places) for key, places in tokens.cells()])


class _Tokens:
    """The tokens of a file's rollouts end to end."""

    def __init__(self, name: str, step: int, numbers: np.ndarray, table: Any) -> None:
        import pyarrow.compute as pc

        self.name, self.step, self.numbers = name, step, numbers
        lengths = pc.list_value_length(table["token_ids"]).to_numpy(zero_copy_only=False)
        begins = np.cumsum(lengths) - lengths
        self.row_N = np.repeat(np.arange(len(lengths)), lengths)
        self.position_N = np.arange(lengths.sum()) - np.repeat(begins, lengths)
        self.ids_N = _flat(table, "token_ids").astype(np.int64)
        self.names_N, self.special_N = _flat(table, "tokens"), _flat(table, "special")
        self.student_N, self.teacher_N = _flat(table, "student_logprob"), _flat(table, "teacher_logprob")
        self.exact = table["reverse_kl"].null_count == 0
        self.kl_N = _flat(table, "reverse_kl") if self.exact else self.student_N - self.teacher_N
        ratio_N = self.student_N - self.teacher_N
        self.kept_N = np.flatnonzero((np.abs(self.kl_N) < LARGEST) & (np.abs(ratio_N) < LARGEST))  # no NaN either
        self.sums_N = np.stack([np.ones(len(ratio_N)), self.kl_N, ratio_N, _p(self.student_N), _p(self.teacher_N)], 1)
        self.task, self.teacher = _texts(table, "task"), _texts(table, "teacher")
        self.prompt = np.unique(_texts(table, "prompt_id"), return_inverse=True)[1]
        self.turn_N = np.ones(len(self.row_N), np.int64)
        for row, turns in enumerate(table["turns"].to_pylist() if "turns" in table.column_names else ()):
            students = [turn for turn in turns or () if turn["role"] == "student"]
            for number, turn in enumerate(students, start=1):
                tokens = self.turn_N[begins[row] : begins[row] + lengths[row]]
                tokens[max(0, turn["start"]) : max(0, turn["end"])] = min(number, MOST_TURNS)

    def cells(self) -> Iterator[tuple[tuple[str, str, int], np.ndarray]]:
        """What is kept, by task, teacher and turn: numbers of tokens, in order."""
        keys = np.stack([_numbered(names)[self.row_N] for names in (self.task, self.teacher)], 1)
        keys_N = np.column_stack([keys, self.turn_N])[self.kept_N]
        different, inverse = np.unique(keys_N, axis=0, return_inverse=True)
        for number in range(len(different)):
            places = self.kept_N[inverse.reshape(-1) == number]
            row = self.row_N[places[0]]
            yield (self.task[row], self.teacher[row], int(self.turn_N[places[0]])), places

    def cell(self, key: tuple[str, str, int], n: np.ndarray) -> Cell:
        """The sums of tokens `n`."""
        kl = self.kl_N[n]
        ids, first, inverse = np.unique(self.ids_N[n], return_index=True, return_inverse=True)
        sums = np.zeros((len(ids), len(SUMS)))
        np.add.at(sums, inverse, self.sums_N[n])
        return Cell(
            *key,
            rows=np.unique(self.row_N[n]),
            ids=ids,
            names=[str(text) for text in self.names_N[n[first]]],
            special=self.special_N[n[first]].astype(bool),
            sums=sums,
            positions=_counted(self.position_N[n], kl),
            prompts=_counted(self.prompt[self.row_N[n]], kl, int(self.prompt.max()) + 1)[:, :2],
            above=np.array([[(kl > least).sum(), kl[kl > least].sum()] for least in ABOVE]),
            places=[self._place(int(place)) for place in n[np.argsort(-kl, kind="stable")[:SHOWN_PLACES]]],
        )

    def _place(self, n: int) -> dict[str, Any]:
        position = int(self.position_N[n])
        return {
            "id": f"{self.name}:{self.numbers[self.row_N[n]]}",
            "step": self.step,
            "position": position,
            "before": [str(text) for text in self.names_N[n - min(CONTEXT, position) : n]],
            "token": str(self.names_N[n]),
            "kl": float(self.kl_N[n]),
            "student_p": float(_p(self.student_N[n])),
            "teacher_p": float(_p(self.teacher_N[n])),
        }


def _p(logprob: Any) -> Any:
    """Probabilities; of a log-prob above 0, which is none, 1."""
    return np.exp(np.minimum(logprob, 0.0))


def _flat(table: Any, column: str) -> np.ndarray:
    """All values of a list column end to end; nulls as NaN."""
    array: np.ndarray = table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return array


def _texts(table: Any, column: str) -> list[str]:
    values = table[column].to_pylist() if column in table.column_names else [None] * table.num_rows
    return [str(value or "") for value in values]


def _numbered(names: list[str]) -> np.ndarray:
    numbers: np.ndarray = np.unique(names, return_inverse=True)[1]
    return numbers


def _counted(place_N: np.ndarray, kl_N: np.ndarray, places: int = 0) -> np.ndarray:
    """[places, 3]: count, sum and sum of squares at each place."""
    return np.stack([np.bincount(place_N, each, places) for each in (np.ones_like(kl_N), kl_N, kl_N**2)], 1)
