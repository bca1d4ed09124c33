"""What is in the file of an offline run of W&B, read as W&B itself reads it."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def history_of(file: Path) -> list[dict[str, Any]]:
    """The lines of a run that are in W&B's file so far."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for data in _records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def runs_of(file: Path) -> list[Any]:
    from wandb.proto import wandb_internal_pb2

    records = []
    for data in _records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        records += [record.run] if record.HasField("run") else []
    return records


def _records(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log, which an offline run of W&B is after seven bytes of its own."""
    position, block, parts = 7, 32768, []
    while position + 7 <= len(data):
        if (left := block - position % block) < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        if position + 7 + length > len(data):  # still being written
            return
        parts.append(data[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            yield b"".join(parts)
            parts = []
