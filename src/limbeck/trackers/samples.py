"""The recorded rollouts of a step, for trackers that show tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limbeck.files.names import step_name

COLUMNS = (
    "source", "task", "prompt_id", "prompt_text", "response_text", "answer", "reward", "finish", "teacher",
    "sampled_tokens", "reverse_kl_mean", "log_ratio_mean", "kl_max",
)  # fmt: skip


def recorded_samples(folder: Path, step: int) -> list[list[Any]] | None:
    """A row for each, in the order of `COLUMNS`; None where the step of the run in `folder` was not recorded."""
    path = folder / "rollouts" / step_name(step, ".parquet")
    if not path.is_file():
        return None
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path).read(columns=list(COLUMNS), use_threads=False).to_pydict()
    return [list(row) for row in zip(*(table[name] for name in COLUMNS), strict=True)]
