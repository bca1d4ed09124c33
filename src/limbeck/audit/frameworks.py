"""The dumps of other trainers, as their own files are written. Nothing of theirs is imported.

Each reader says what its file never holds. The guide *Auditing a run* says how each trainer is made to write it, and of
which date its code was read.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from limbeck.audit.dump import Dump, Row, make_row, without_padding
from limbeck.errors import DataError
from limbeck.formatting import shown

STATUS = {"completed": "stop", "truncated": "length"}
NO_LOSSES = "this dump has no losses, and advantages alone do not show them"


def as_list(value: Any) -> Any:
    """Tensors and arrays as lists; other values as they are."""
    return value.tolist() if hasattr(value, "tolist") else value


def read_slime(content: Mapping[str, Any], name: str, step: int | None) -> Dump:
    """slime's and miles's `--save-debug-rollout-data` and `--save-debug-train-data`."""
    named = as_list(content.get("rollout_id"))
    step = named if isinstance(named, int) else step
    samples = content.get("samples")
    if samples is None:  # miles writes a column for each field, one file a rank
        samples = _rows_of(content["rollout_data"], name)
    if not isinstance(samples, list | tuple) or not all(isinstance(sample, Mapping) for sample in samples):
        raise DataError(f"{name}: samples is {shown(samples)}, expected a list of dictionaries, one for each sample.")
    rows = [_slime_row(sample, f"{name}, sample {i}", i, step) for i, sample in enumerate(samples)]
    trained = any("response_lengths" in sample for sample in samples)
    lacks = {"losses": NO_LOSSES}
    if not trained:
        lacks["student"] = "a rollout dump has the sampler's log-probs; --save-debug-train-data has the trainer's"
        lacks["advantages"] = "a rollout dump has no advantages; --save-debug-train-data has them"
    return Dump(f"slime's {'train' if trained else 'rollout'} dump", rows, lacks, complete="rank" not in content)


def _rows_of(columns: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(columns, Mapping) or "tokens" not in columns:
        raise DataError(f"{name}: rollout_data is {shown(columns)}, expected columns with tokens.")
    count = len(columns["tokens"])
    per_row = {k: v for k, v in columns.items() if isinstance(v, list | tuple) and len(v) == count}
    return [{key: values[i] for key, values in per_row.items()} for i in range(count)]


def _slime_row(sample: Mapping[str, Any], where: str, index: int, step: int | None) -> Row:
    tokens = as_list(sample.get("tokens"))
    length = as_list(sample.get("response_lengths", sample.get("response_length")))
    if not isinstance(tokens, list) or not isinstance(length, int) or not 0 <= length <= len(tokens):
        raise DataError(f"{where} has the fields {shown(sorted(sample), 300)}, expected tokens and response_length.")
    start = len(tokens) - length
    mask = as_list(sample.get("loss_masks", sample.get("loss_mask")))
    reward, prompt = as_list(sample.get("raw_reward", sample.get("reward"))), sample.get("prompt")
    finish = STATUS.get(str(sample.get("status")))
    if "truncated" in sample:
        finish = "length" if sample["truncated"] else "stop"
    if sample.get("remove_sample"):
        mask = [0] * length
    columns = {"student": "log_probs", "teacher": "teacher_log_probs", "sampler": "rollout_log_probs"}
    values = {key: as_list(sample.get(field)) for key, field in {**columns, "advantages": "advantages"}.items()}
    return make_row(
        where, index, tokens[:start], tokens[start:], mask=mask if mask is not None else [1] * length, values=values,
        step=step, finish=finish, reward=float(reward) if isinstance(reward, int | float) else None,
        prompt_text=prompt if isinstance(prompt, str) else None,
        messages=prompt if isinstance(prompt, list) else None,
        response_text=sample.get("response") or None,
    )  # fmt: skip


VERL = {
    "student": ("old_log_probs",),
    "teacher": ("teacher_log_probs", "teacher_logprobs", "ref_log_prob"),
    "sampler": ("rollout_log_probs",),
    "advantages": ("advantages",),
}


VERL_FIELDS = {"prompts", "responses", "attention_mask", "response_mask", *itertools.chain(*VERL.values())}


def as_array(value: Any, where: str) -> Any:
    """A tensor, an array or a rectangular list as an array of numbers."""
    try:
        array = np.asarray(as_list(value))
    except ValueError:
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where} is {shown(value)}, expected a tensor of numbers.")
    return array


def read_verl(content: Mapping[str, Any], name: str, step: int | None) -> Dump:
    """The tensors of verl's `DataProto.batch`, saved as a plain dictionary."""
    arrays = {key: as_array(value, f"{name}: {key}") for key, value in content.items() if key in VERL_FIELDS}
    prompts, responses = arrays["prompts"], arrays["responses"]
    if prompts.ndim != 2 or responses.ndim != 2 or len(prompts) != len(responses):
        raise DataError(
            f"{name}: prompts have the shape {prompts.shape} and responses {responses.shape}, expected (rows, prompt "
            "tokens) and (rows, response tokens) with as many rows."
        )
    count, width = responses.shape
    whole = prompts.shape[1] + width
    for key, array in arrays.items():
        fits = array.ndim in (2, 3) and len(array) == count and array.shape[1] in (width, whole)
        if key == "attention_mask":
            fits = array.shape == (count, whole)
        if not fits and key != "prompts":
            raise DataError(
                f"{name}: {key} has the shape {array.shape}, expected ({count}, {width}), one number for each token "
                f"of the responses, or ({count}, {whole}) with the prompts."
            )
    attended = arrays.get("attention_mask", np.ones((count, prompts.shape[1] + width), dtype=np.int64))
    mask = arrays.get("response_mask", attended)[:, -width:]
    rows = []
    for i in range(count):
        values: dict[str, Any] = {}
        for key, fields in VERL.items():
            found = next((arrays[field] for field in fields if field in arrays), None)
            if found is not None and found.ndim == 3:  # the sampled token comes first
                found = found[..., 0]
            values[key] = None if found is None else found[i][-width:].tolist()
        row = make_row(
            f"{name}, row {i}", i, prompts[i].tolist(), responses[i].tolist(), mask=mask[i].tolist(), values=values,
            step=step,
        )  # fmt: skip
        trained = np.zeros(len(row.token_ids), bool) if row.mask is None else row.mask
        rows.append(without_padding(row, ((attended[i] == 0) & ~trained).astype(np.int64)))
    return Dump("verl's DataProto", rows, {"losses": NO_LOSSES})


def read_prime_export(rows: Sequence[Mapping[str, Any]], name: str) -> Dump:
    """prime-rl's `token_exports`, of `trainer.enable_token_export = true`: a value of token i is at place i."""
    read = []
    for i, row in enumerate(rows):
        mask, ids = row["loss_mask"], row["token_ids"]
        start = next((place for place, trained in enumerate(mask) if trained), len(ids))
        values = {"student": row["trainer_logprobs"], "sampler": row["inference_logprobs"]}
        known = {key: [v if j else None for j, v in enumerate(column)] for key, column in values.items()}
        known["advantages"] = row["advantages"]
        read.append(
            make_row(
                f"{name}, row {i}", i, ids[:start], ids[start:], mask=mask, values=known, step=row.get("step")
            )
        )  # fmt: skip
    lacks = {
        "teacher": "token_exports have no teacher log-probs; the rollouts/step_N/rank_R.bin files have ref_logprobs",
        "losses": NO_LOSSES,
    }
    return Dump("prime-rl's token export", read, lacks, complete=False)


PRIME = ("input_ids", "loss_mask", "advantages", "inference_logprobs", "position_ids", "sequence_lengths",
         "temperatures", "env_names", "seq_lens", "ref_logprobs")  # fmt: skip


def read_prime_batches(batches: Any, name: str, step: int | None) -> Dump:
    """prime-rl's `rollouts/step_N/rank_R.bin`: several sequences in a row, split again where positions begin at 0."""
    rows: list[Row] = []
    for batch in batches if isinstance(batches, list) else [None]:
        if not isinstance(batch, list) or len(batch) < len(PRIME) - 1 or not isinstance(batch[0], list):
            raise DataError(f"{name} is {shown(batches)}, expected prime-rl's list of micro-batches.")
        fields = dict(zip(PRIME, batch, strict=False))
        ids, mask = fields["input_ids"], fields["loss_mask"]
        starts = [place for place, position in enumerate(fields["position_ids"]) if position == 0] or [0]
        for first, last in zip(starts, [*starts[1:], len(ids)], strict=True):
            if last - first < 2 or not any(mask[first:last]):
                continue  # padding up to a multiple
            rows.append(_prime_row(fields, first, last, f"{name}, sequence {len(rows)}", len(rows), step))
    lacks = {"student": "these files are written before the trainer scores; token_exports have its log-probs",
             "losses": NO_LOSSES}  # fmt: skip
    return Dump("prime-rl's micro-batches", rows, lacks, complete=False)


def _prime_row(fields: Mapping[str, Any], first: int, last: int, where: str, index: int, step: int | None) -> Row:
    cut = slice(first, last)
    ids, mask = fields["input_ids"][cut], fields["loss_mask"][cut]
    start = next(place for place, trained in enumerate(mask) if trained)
    unknown: list[float | None] = [None]
    values = {"sampler": fields["inference_logprobs"], "teacher": fields.get("ref_logprobs")}
    columns: dict[str, Any] = {key: unknown + v[cut][1:] for key, v in values.items() if v is not None}
    columns["sampler"] = [v if trained else None for v, trained in zip(columns["sampler"], mask, strict=True)]
    columns["advantages"] = fields["advantages"][cut]
    given = {t for t, trained in zip(fields["temperatures"][cut], mask, strict=True) if trained}
    if len(given) > 1:
        raise DataError(f"{where}: temperatures are {shown(sorted(given))}, expected one for the tokens of a sequence.")
    temperature = next(iter(given), None)
    return make_row(
        where, index, ids[:start], ids[start:], mask=mask, values=columns, step=step, temperature=temperature
    )


def text_only(kind: str, columns: Sequence[str]) -> Dump:
    """A dump without tokens: nothing can be recomputed."""
    why = f"{kind} has only {', '.join(columns)}: text, and no token ids or log-probs"
    return Dump(kind, [], {"tokens": why})
