"""Episodes whose content no rule fixes, kept until a checkpoint covers them: `journal/step-000012.jsonl`.

What an agent, its tools or a server with random numbers of its own did cannot be done again. So the episodes of a step
are written before its update, rewards too; a run that is resumed takes them from there, and makes the same updates to
the bit.

    {"format": 1, "step": 12, "digest": "<sha256 of the lines below>"}
    {"key": ["p1", 0, 0], "reward": 1.0, "turn_rewards": [], "counts": {}, "rollouts": [{"token_ids": "<base64>", ...}]}
    {"key": ["p1", 0, 1], "failure": {"id": "p1", "stage": "run", "kind": "timeout", "message": "..."}}
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.errors import RunError
from limbeck.files.disk import read_file
from limbeck.files.names import step_name
from limbeck.records import Episode, Failure, Key, Prompt, Rollout, Sampling, Turn
from limbeck.training.run_folder import RunFolder

FORMAT = 1
ARRAYS = {
    "token_ids": np.int64, "trained": np.bool_, "logprobs": np.float32, "versions": np.int64, "top_ids": np.int64,
}  # fmt: skip

Keyed = Sequence[tuple[Prompt, Key]]
Answers = Sequence[Episode | Failure]


class Journal:
    """Of one run."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def write(self, step: int, keyed: Keyed, answers: Answers) -> None:
        """The answers of `step`, one a key; on the disk when this returns. Raises `RunError`."""
        lines = [json.dumps(_table_of(key, answer)) for (_, key), answer in zip(keyed, answers, strict=True)]
        body = "\n".join(lines).encode()
        head = json.dumps({"format": FORMAT, "step": step, "digest": hashlib.sha256(body).hexdigest()}).encode()

        def write(path: Path) -> None:
            path.write_bytes(head + b"\n" + body)

        self.folder.write_file(_name(step), write)

    def read(self, step: int, keyed: Keyed) -> list[Episode | Failure] | None:
        """The answers of `step`; None where they are not there. Raises `RunError` where they are of other keys."""
        path = self.folder.path / _name(step)
        try:
            data = read_file(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror}.") from None
        head, _, body = data.partition(b"\n")
        remedy = "Restore it, or remove it: then the episodes of that step are made again, and may be others."
        try:
            table = json.loads(head)
            whole = (table["format"], table["step"], table["digest"]) == (
                FORMAT,
                step,
                hashlib.sha256(body).hexdigest(),
            )
        except (ValueError, KeyError, TypeError, RecursionError):
            whole = False
        if not whole:
            raise RunError(f"{path} is not as it was written. {remedy}")
        rows = [json.loads(line) for line in body.splitlines()]
        if [_key_of(row["key"]) for row in rows] != [key for _, key in keyed]:
            raise RunError(
                f"{path} has the episodes of other prompts than step {step} asks for: were the data changed? {remedy}"
            )
        return [_answer_of(row, prompt, key) for row, (prompt, key) in zip(rows, keyed, strict=True)]


def _name(step: int) -> str:
    return f"journal/{step_name(step, '.jsonl')}"


def _table_of(key: Key, answer: Episode | Failure) -> dict[str, Any]:
    place = [key.prompt_id, key.occurrence, key.sample]
    if isinstance(answer, Failure):
        return {"key": place, "failure": asdict(answer)}
    return {
        "key": place,
        "reward": answer.reward,
        "turn_rewards": list(answer.turn_rewards),
        "counts": dict(answer.counts),
        "rollouts": [_rollout_table(rollout) for rollout in answer.rollouts],
    }


def _rollout_table(rollout: Rollout) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for name, dtype in ARRAYS.items():
        array = getattr(rollout, name)
        if array is not None:
            arrays[name] = base64.b64encode(np.ascontiguousarray(array, dtype=dtype).tobytes()).decode()
    top = 0 if rollout.top_ids is None else rollout.top_ids.shape[1]
    return {
        **arrays,
        "top": top,
        "segment": rollout.segment,
        "sampling": asdict(rollout.sampling),
        "turns": [{**asdict(turn), "key": None if turn.key is None else turn.key.turn} for turn in rollout.turns],
        "reason": rollout.reason,
        "source": rollout.source,
    }


def _key_of(place: Sequence[Any]) -> Key:
    prompt_id, occurrence, sample = place
    return Key(prompt_id, occurrence, sample)


def _answer_of(row: Mapping[str, Any], prompt: Prompt, key: Key) -> Episode | Failure:
    if "failure" in row:
        return Failure(**row["failure"])
    rollouts = tuple(_rollout_of(table, prompt, key) for table in row["rollouts"])
    return Episode(key, rollouts, row["reward"], tuple(row["turn_rewards"]), row.get("counts", {}))


def _rollout_of(table: Mapping[str, Any], prompt: Prompt, key: Key) -> Rollout:
    arrays: dict[str, Any] = {
        name: np.frombuffer(base64.b64decode(table[name]), dtype=dtype).copy()
        for name, dtype in ARRAYS.items()
        if name in table
    }
    if "top_ids" in arrays:
        arrays["top_ids"] = arrays["top_ids"].reshape(-1, table["top"])
    sampling = {**table["sampling"], "stop_ids": tuple(table["sampling"]["stop_ids"])}
    turns = [{**turn, "key": None if turn["key"] is None else _at_turn(key, turn["key"])} for turn in table["turns"]]
    return Rollout(
        prompt=prompt,
        key=key,
        segment=table["segment"],
        sampling=Sampling(**sampling),
        turns=tuple(Turn(**turn) for turn in turns),
        reason=table["reason"],
        source=table.get("source", "student"),
        **arrays,
    )


def _at_turn(key: Key, turn: int) -> Key:
    return Key(key.prompt_id, key.occurrence, key.sample, turn)
