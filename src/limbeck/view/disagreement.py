"""Where student and teacher disagree, summed over all recorded rollouts.

Each file is summed once into a few short arrays (its different tokens, its positions, its worst
places) and these are kept, so asking again, or for other steps, costs little. KL is the exact one at
the position where the token was sampled; the sampled log-ratio where there is no exact one.

Watched prompts come again at every step and would count too much: they are used only where a run
recorded nothing else.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.view.rollouts import Rollouts, _read, _stamp, first_line

if TYPE_CHECKING:
    from limbeck.view.rollouts import Stamp

COLUMNS = ["step", "source", "token_ids", "tokens", "special", "student_logprob", "teacher_logprob", "reverse_kl"]
SHOWN_TOKENS = 40
SHOWN_PLACES = 30
LARGEST = 1e6  # nats at one token: more is a damaged file's, and sums of it would not be finite
CONTEXT = 12  # tokens before a place that are shown with it
SHOWN_BINS = 120
SUMS = ("count", "kl", "log_ratio", "student_p", "teacher_p")


@dataclass(frozen=True)
class _Part:
    """The sums of one file."""

    stamp: Stamp
    step: int
    rollouts: int
    exact: bool
    ids: np.ndarray  # [U] the different tokens
    names: list[str]  # [U]
    special: np.ndarray  # [U]
    sums: np.ndarray  # [U, len(SUMS)]
    positions: np.ndarray  # [P, 3] count, sum and sum of squares of the KL at each position
    places: list[dict[str, Any]]


class Disagreement:
    """Over the rollouts of one run."""

    def __init__(self, rollouts: Rollouts) -> None:
        self.rollouts = rollouts
        self._parts: dict[str, _Part | str] = {}
        self._lock = threading.Lock()

    def summary(self, first: int = 0, last: int | None = None) -> dict[str, Any]:
        """Tokens, special tokens, positions and single places that carry the most KL, from step to step."""
        with self._lock:
            found = [self._part(name) for name in self.rollouts.names()]
        parts = [p for p in found if isinstance(p, _Part)]
        chosen = [p for p in parts if p.step >= first and (last is None or p.step <= last) and len(p.ids)]
        problems = [p for p in found if isinstance(p, str)]
        if not chosen:
            return {"rollouts": 0, "tokens_seen": 0, "problems": [*problems, "No recorded tokens in these steps."]}
        tokens = _tokens(chosen)
        total = float(sum(part.sums[:, 1].sum() for part in chosen))
        places = sorted((place for part in chosen for place in part.places), key=lambda p: -p["kl"])
        return {
            "rollouts": sum(part.rollouts for part in chosen),
            "steps": [chosen[0].step, chosen[-1].step],
            "exact": all(part.exact for part in chosen),
            "tokens_seen": int(sum(part.sums[:, 0].sum() for part in chosen)),
            "kl_total": total,
            "tokens": sorted(tokens, key=lambda t: -t["kl"])[:SHOWN_TOKENS],
            "special": sorted((t for t in tokens if t["special"]), key=lambda t: -t["count"])[:SHOWN_TOKENS],
            "positions": _positions(chosen),
            "places": places[:SHOWN_PLACES],
            "problems": problems,
        }

    def _part(self, name: str) -> _Part | str | None:
        """The sums of one file, or what is wrong with it."""
        path = self.rollouts.folder / name
        stamp = _stamp(path)
        if stamp is None:
            return None
        known = self._parts.get(name)
        if known is None or isinstance(known, str) or known.stamp != stamp:
            try:
                known = _sum_up(name, stamp, _read(path, COLUMNS))
            except Exception as error:
                known = f"rollouts/{name} is skipped: {first_line(error)}"
            self._parts[name] = known
        return known


def _sum_up(name: str, stamp: Stamp, table: Any) -> _Part:
    """Raises `ValueError` for a file without the columns this needs."""
    import pyarrow.compute as pc

    missing = [column for column in COLUMNS if column not in table.column_names]
    if missing:
        raise ValueError(f"it has no column {', '.join(missing)}.")
    numbers = np.arange(table.num_rows)
    train = table["source"].to_numpy(zero_copy_only=False) == "train"
    if train.any():
        numbers, table = numbers[train], table.filter(train)
    step = int(table["step"][0].as_py()) if table.num_rows else 0
    lengths = pc.list_value_length(table["token_ids"]).to_numpy(zero_copy_only=False)
    row_N = np.repeat(np.arange(len(lengths)), lengths)
    position_N = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    ids_N = _flat(table, "token_ids").astype(np.int64)
    student_N, teacher_N = _flat(table, "student_logprob"), _flat(table, "teacher_logprob")
    exact = table["reverse_kl"].null_count == 0
    kl_N = _flat(table, "reverse_kl") if exact else student_N - teacher_N
    kept_N = np.flatnonzero((np.abs(kl_N) < LARGEST) & (np.abs(student_N - teacher_N) < LARGEST))  # no NaN either
    columns_N = np.stack([np.ones(len(ids_N)), kl_N, student_N - teacher_N, _p(student_N), _p(teacher_N)], axis=1)
    ids, first, inverse = np.unique(ids_N[kept_N], return_index=True, return_inverse=True)
    sums = np.zeros((len(ids), len(SUMS)))
    np.add.at(sums, inverse, columns_N[kept_N])
    tokens = _flat(table, "tokens")
    worst = kept_N[np.argsort(-kl_N[kept_N], kind="stable")[:SHOWN_PLACES]]
    return _Part(
        stamp=stamp,
        step=step,
        rollouts=table.num_rows,
        exact=exact,
        ids=ids,
        names=[str(text) for text in tokens[kept_N[first]]],
        special=_flat(table, "special")[kept_N[first]].astype(bool),
        sums=sums,
        positions=_by_position(position_N[kept_N], kl_N[kept_N]),
        places=[
            {
                "id": f"{name}:{numbers[row_N[n]]}",
                "step": step,
                "position": int(position_N[n]),
                "before": [str(text) for text in tokens[n - min(CONTEXT, int(position_N[n])) : n]],
                "token": str(tokens[n]),
                "kl": float(kl_N[n]),
                "student_p": float(_p(student_N[n])),
                "teacher_p": float(_p(teacher_N[n])),
            }
            for n in worst
        ],
    )


def _p(logprob: Any) -> Any:
    """Probabilities; of a log-prob above 0, which is none, 1."""
    return np.exp(np.minimum(logprob, 0.0))


def _flat(table: Any, column: str) -> np.ndarray:
    """All values of a list column end to end; nulls as NaN."""
    values = table[column].combine_chunks().flatten()
    array: np.ndarray = values.to_numpy(zero_copy_only=False)
    return array


def _by_position(position_N: np.ndarray, kl_N: np.ndarray) -> np.ndarray:
    return np.stack([np.bincount(position_N, weights=weights) for weights in (np.ones_like(kl_N), kl_N, kl_N**2)], 1)


def _tokens(parts: list[_Part]) -> list[dict[str, Any]]:
    """One entry a different token, over all parts."""
    ids = np.concatenate([part.ids for part in parts])
    names = [name for part in parts for name in part.names]
    special = np.concatenate([part.special for part in parts])
    different, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    sums = np.zeros((len(different), len(SUMS)))
    np.add.at(sums, inverse, np.concatenate([part.sums for part in parts]))
    return [
        {
            "token_id": int(id_),
            "token": names[index],
            "special": bool(special[index]),
            "count": int(row[0]),
            "kl": float(row[1]),
            "kl_mean": float(row[1] / row[0]),
            "log_ratio_mean": float(row[2] / row[0]),
            "student_p": float(row[3] / row[0]),
            "teacher_p": float(row[4] / row[0]),
        }
        for id_, index, row in zip(different, first, sums, strict=True)
    ]


def _positions(parts: list[_Part]) -> list[dict[str, Any]]:
    """Mean KL by position in the response, in at most `SHOWN_BINS` bins, with its standard error."""
    length = max(len(part.positions) for part in parts)
    total = np.zeros((length, 3))
    for part in parts:
        total[: len(part.positions)] += part.positions
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
