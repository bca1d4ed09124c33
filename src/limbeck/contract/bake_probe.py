"""The probe file that travels with a baked checkpoint: texts, and the log-probs a server must give for them.

    {"format": 1, "temperature": 0.7, "source": "models/teacher", "vocabulary": 151936,
     "tensors": ["model.norm.weight"], "errors": {"bfloat16": {"mean": 0.011, "max": 0.052}},
     "sequences": [{"ids": [5, 6, 7], "start": 1, "logprobs": [-0.51, -2.3]}]}

`errors` are the differences in nats that a narrower type of the baked tensor makes, measured on these sequences.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from limbeck.errors import ContractError
from limbeck.wire.score import WireError, integer, number

FILE = "limbeck_bake.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class ProbeSequence:
    """`logprobs` are those of `ids[start:]`, at the baked temperature, by the source model in float32."""

    ids: tuple[int, ...]
    start: int
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ProbeFile:
    """What `limbeck bake` knows about a checkpoint."""

    temperature: float
    source: str
    vocabulary: int
    tensors: tuple[str, ...]
    errors: Mapping[str, Mapping[str, float]]
    sequences: Sequence[ProbeSequence]

    def write(self, folder: Path) -> None:
        table = {"format": FORMAT, **asdict(self)}
        (folder / FILE).write_text(json.dumps(table, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_probe_file(folder: Path) -> ProbeFile:
    """Raises `ContractError` where the folder has no readable probe file."""
    path = folder / FILE
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if table["format"] != FORMAT:
            raise ContractError(f"{path} has format {table['format']!r}, expected {FORMAT}: bake the model again.")
        return ProbeFile(
            temperature=number(table["temperature"], "temperature"),
            source=str(table["source"]),
            vocabulary=integer(table["vocabulary"], "vocabulary"),
            tensors=tuple(table["tensors"]),
            errors=table["errors"],
            sequences=tuple(
                ProbeSequence(
                    tuple(integer(i, "token id") for i in row["ids"]),
                    integer(row["start"], "start"),
                    tuple(number(value, "log-prob") for value in row["logprobs"]),
                )
                for row in table["sequences"]
            ),
        )
    except (OSError, ValueError, LookupError, TypeError, RecursionError, WireError) as error:
        raise ContractError(
            f"teacher.baked: {path} cannot be read ({type(error).__name__}: {error}). It is written by `limbeck bake`; "
            "copy it beside the run, or leave teacher.baked out."
        ) from None
