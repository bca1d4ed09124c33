"""The Parquet files of recorded rollouts: their columns, for `recording.py` and whoever reads them.

One row a rollout. List columns of the prompt are as long as the prompt; all others have one entry a
token of the response, null where the student did not sample that token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1  # in the files' metadata as `limbeck_rollouts`


def schema() -> pa.Schema:
    """The columns of a file, in order; docs/reference/files.md says what each means."""
    import pyarrow as pa

    text, integer, real = pa.string(), pa.int32(), pa.float32()
    one_each: list[tuple[str, pa.DataType]] = [
        ("step", integer), ("source", text), ("prompt_id", text), ("task", text), ("teacher", text),
        ("sample", integer), ("policy_version", integer), ("temperature", pa.float64()),
        ("prompt_text", text), ("answer", text), ("response_text", text), ("finish", text),
        ("reward", pa.float64()), ("advantage", pa.float64()), ("sampled_tokens", integer),
        ("log_ratio_mean", real), ("reverse_kl_mean", real), ("kl_max", real),
    ]  # fmt: skip
    per_token: list[tuple[str, pa.DataType]] = [
        ("prompt_ids", integer), ("prompt_tokens", text), ("token_ids", integer), ("tokens", text),
        ("special", pa.bool_()), ("trained", pa.bool_()), ("student_logprob", real), ("teacher_logprob", real),
        ("behaviour_logprob", real), ("reverse_kl", real), ("student_entropy", real), ("teacher_entropy", real),
    ]  # fmt: skip
    tops = [
        (f"{side}_top_{what}", pa.list_(kind))
        for side in ("student", "teacher")
        for what, kind in (("ids", integer), ("tokens", text), ("logprobs", real))
    ]
    return pa.schema(
        one_each + [(name, pa.list_(kind)) for name, kind in per_token + tops],
        metadata={"limbeck_rollouts": str(FORMAT)},
    )


def write_rollouts(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One file of `rows`, each a mapping of all columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema()), path, compression="zstd")
