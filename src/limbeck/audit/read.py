"""Files to a dump: which trainer wrote one follows from what is in it.

Pickles are loaded as `torch.load(weights_only=True)` allows: tensors and plain containers. Anything else in one is
refused by name, and never run.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.audit.dump import Dump
from limbeck.audit.frameworks import (
    as_array,
    read_prime_batches,
    read_prime_export,
    read_slime,
    read_verl,
    text_only,
)
from limbeck.audit.neutral import read_rows
from limbeck.errors import DataError
from limbeck.files.digests import RECIPE_FILE
from limbeck.formatting import shown

SUFFIXES = (".parquet", ".jsonl", ".json", ".pt", ".pth", ".pkl", ".bin")
VERL_TEXT = {"input", "output", "score"}  # trainer.rollout_data_dir
TRL_TEXT = {"prompt", "completion", "step"}  # log_completions
VERL_REMEDY = (
    'Where it was written, run: python -c "import torch, sys; from verl import DataProto; '
    "torch.save(dict(DataProto.load_from_disk(sys.argv[1]).batch), 'batch.pt')\" FILE"
)


def read_dump(path: Path) -> Dump:
    """The dump in a file, or in all files below a folder in the order of the numbers in their names.

    Of the folder of one of our own runs, its recorded rollouts alone. Raises `DataError` for what is no dump, and for
    a pickle that holds more than tensors and plain containers.
    """
    if not path.exists():
        raise DataError(f"{path} is not there, expected a dump to audit: a file or a folder of them.")
    if (path / RECIPE_FILE).is_file():  # beside its rollouts are metrics, checkpoints and states, which are no dump
        path = path / "rollouts"
        if not path.is_dir():
            raise DataError(
                f"{path} is not there, expected the recorded rollouts of a run, step-N.parquet: train with "
                "record.every and record.rollouts_per_step above 0."
            )
    files = [path] if path.is_file() else sorted((p for p in path.rglob("*") if p.suffix in SUFFIXES), key=_order)
    if not files:
        raise DataError(f"{path} has no file to audit, expected one that ends in {', '.join(SUFFIXES)}.")
    model = next((f.parent for f in files if path.is_dir() and f.name == "config.json"), None)
    if model is not None and any(model.glob("*.safetensors")):
        raise DataError(
            f"{model} is a model, and no dump: expected recorded rollouts alone, in files that end in "
            f"{', '.join(SUFFIXES)}. Give the file or folder that the trainer recorded them in."
        )
    files, evaluations = _without_evaluations(files)
    dumps = [_checked(file) for file in files]
    kinds = sorted({dump.kind for dump in dumps})
    if len(kinds) > 1:
        raise DataError(f"{path} has dumps of several kinds: {', '.join(kinds)}. Give one of them.")
    dump = Dump(kinds[0], [row for d in dumps for row in d.rows], dumps[0].lacks, all(d.complete for d in dumps))
    if evaluations:
        names = ", ".join(file.name for file in evaluations[:3])
        dump.lacks = {**dump.lacks, "evaluations": f"{len(evaluations)} files of evaluation are left out: {names}"}
    if not dump.rows and "tokens" not in dump.lacks:
        raise DataError(f"{path} has no rows, expected at least one.")
    if all(row.step is not None for row in dump.rows):
        dump.rows.sort(key=lambda row: row.step or 0)  # stable: within a step as they were written
    for index, row in enumerate(dump.rows):
        row.index = index
    return dump


def _without_evaluations(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The files of training, and slime's `eval_N.pt` beside them: another sampler's settings, and no step."""
    marked = [file for file in files if re.search(r"(^|[^a-z])eval([^a-z]|$)", file.stem.lower())]
    rest = [file for file in files if file not in marked]
    return (rest, marked) if rest else (list(files), [])


def _checked(path: Path) -> Dump:
    """The dump in a file, whatever its layout is: what no reader foresaw is one message too."""
    try:
        return _read(path)
    except DataError:
        raise
    except (KeyError, TypeError, IndexError, AttributeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path} is not laid out as its kind is ({type(error).__name__}: {shown(str(error))}). "
            "The guide *Auditing a run* says what each trainer's file holds."
        ) from None


def _order(path: Path) -> list[tuple[int, str]]:
    """`step_9` before `step_10`."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", str(path))]


def _read(path: Path) -> Dump:
    match path.suffix:
        case ".parquet":
            return _parquet(path)
        case ".jsonl" | ".json":
            return _of_rows(_json_lines(path), path.name)
        case ".bin" if not _is_pickle(path):
            return read_prime_batches(_msgpack(path), path.name, _step_in(path))
        case ".pt" | ".pth" | ".pkl" | ".bin":
            return _pickle(path)
    raise DataError(f"{path} ends in {path.suffix!r}, expected one of {', '.join(SUFFIXES)}.")


def _parquet(path: Path) -> Dump:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}.") from None
    ours = b"limbeck_rollouts" in (table.schema.metadata or {})
    return _of_rows(table.to_pylist(), path.name, ours)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number} is no JSON object ({error}): {shown(line)}.") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number} is {shown(row)}, expected a JSON object.")
            rows.append(row)
    return rows


def _of_rows(rows: Sequence[dict[str, Any]], name: str, ours: bool = False) -> Dump:
    columns = set(rows[0]) if rows else set()
    if {"trainer_logprobs", "inference_logprobs"} <= columns:
        return read_prime_export(rows, name)
    if columns >= VERL_TEXT and "token_ids" not in columns and "response_ids" not in columns:
        return text_only("verl's generation log", sorted(columns))
    if columns >= TRL_TEXT and not any(column.endswith("_ids") for column in columns):
        return text_only("TRL's table of completions", sorted(columns))
    return read_rows(rows, name, ours)


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(4)
    return head[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def _msgpack(path: Path) -> Any:
    import msgpack

    try:
        return msgpack.unpackb(path.read_bytes(), strict_map_key=False)
    except Exception as error:  # msgpack raises many kinds of its own, and ValueError
        raise DataError(f"{path} cannot be read as msgpack: {type(error).__name__} {error}.") from None


def _pickle(path: Path) -> Dump:
    import torch

    try:
        with torch.serialization.safe_globals(_numpy_parts()), warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError, ...
        raise DataError(f"{path} is not loaded: {_what_it_holds(path, error)}") from None
    if not isinstance(content, dict):
        raise DataError(
            f"{path} holds {type(content).__name__}, expected a dictionary. See the guide *Auditing a run*."
        )
    keys = {str(key) for key in content}
    if "samples" in keys or "rollout_data" in keys:
        return read_slime(content, path.name, _step_in(path))
    if {"prompts", "responses"} <= keys:
        return read_verl(content, path.name, _step_in(path))
    if {"completion_ids", "prompt_ids"} <= keys:  # TRL's inputs of one step, saved as tensors
        return _trl_tensors(content, path)
    raise DataError(
        f"{path} has the keys {shown(sorted(keys), 300)}, expected samples or rollout_data (slime, miles), prompts and "
        "responses (verl), or prompt_ids and completion_ids (TRL). See the guide *Auditing a run*."
    )


def _trl_tensors(content: dict[str, Any], path: Path) -> Dump:
    """TRL's batch under verl's names: both are padded prompts on the left and padded responses on the right."""
    ones = np.ones_like
    prompt_ids, completion_ids = (as_array(content[key], f"{path}: {key}") for key in ("prompt_ids", "completion_ids"))
    masks = [
        as_array(content[key], f"{path}: {key}") if content.get(key) is not None else ones(ids)
        for key, ids in (("prompt_mask", prompt_ids), ("completion_mask", completion_ids))
    ]
    for key, mask, ids in zip(("prompt", "completion"), masks, (prompt_ids, completion_ids), strict=True):
        if mask.shape != ids.shape or ids.ndim != 2:
            raise DataError(
                f"{path}: {key}_ids have the shape {ids.shape} and {key}_mask {mask.shape}, expected one shape: "
                "(rows, tokens)."
            )
    names = {
        "old_per_token_logps": "old_log_probs", "teacher_per_token_logps": "teacher_log_probs",
        "ref_per_token_logps": "ref_log_prob", "sampling_per_token_logps": "rollout_log_probs",
    }  # fmt: skip
    advantages = content.get("advantages")
    batch: dict[str, Any] = {
        "prompts": prompt_ids, "responses": completion_ids, "attention_mask": np.concatenate(masks, axis=1),
        "response_mask": masks[1],
        **{verl: content[trl] for trl, verl in names.items() if content.get(trl) is not None},
    }  # fmt: skip
    if advantages is not None:
        values = as_array(advantages, f"{path}: advantages")
        if values.ndim > 1:
            batch["advantages"] = values
    dump = read_verl(batch, path.name, _step_in(path))
    if advantages is not None and "advantages" not in batch:
        dump.lacks["advantages"] = "they are one number a row: no distillation signal is in them"
    dump.kind = "TRL's batch"
    return dump


def _numpy_parts() -> list[Any]:
    """What a plain numpy array or number in a pickle is made of, under the names of numpy 2 and of numpy 1.

    Not the type of objects: what is in an array of them may be anything.
    """
    kinds = [type(np.dtype(code)) for code in "?bhilqBHILQefdUS"]
    made = [np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]]
    old = [(function, f"numpy.core.multiarray.{function.__name__}") for function in made]  # type: ignore[union-attr]
    return [*made, *old, np.ndarray, np.dtype, *dict.fromkeys(kinds)]


def _what_it_holds(path: Path, error: Exception) -> str:
    message = str(error)
    named = re.search(r"GLOBAL (\w[\w.]*\.\w+)", message)  # of torch's own format
    name = named[1] if named else _plain_pickle(path)
    if name is None:
        size = path.stat().st_size
        return (
            f"its {size:,} bytes are no file of torch.save, or a damaged or unfinished one ({type(error).__name__}). "
            "Write it again with torch.save, as the guide *Auditing a run* shows."
        )
    remedy = (
        VERL_REMEDY if "DataProto" in name else "Save tensors and plain lists, as the guide *Auditing a run* shows."
    )
    return f"it holds {name}, and loading it would run code. {remedy}"


def _plain_pickle(path: Path) -> str | None:
    """The first class that a pickle outside torch's own format asks for, from its opcodes; nothing is run."""
    import pickletools

    strings: list[str] = []
    try:
        with path.open("rb") as file:
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name == "GLOBAL":
                    return str(argument).replace(" ", ".")
                if opcode.name == "STACK_GLOBAL":
                    return ".".join(strings[-2:])
                if isinstance(argument, str):
                    strings.append(argument)
    except Exception:  # no pickle after all: the loader's own message says what is wrong
        return None
    return None


def _step_in(path: Path) -> int | None:
    """The last number in the file's name, or in its folder's where the name is a rank's."""
    text = path.parent.name if path.stem.startswith("rank") else path.stem
    numbers = re.findall(r"\d+", text)
    return int(numbers[-1]) if numbers else None
