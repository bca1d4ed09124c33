"""The neutral schema and our own recorded rollouts: rows of named columns, in JSON lines or Parquet.

The guide *Auditing a run* has the table of columns. A name may be in the singular, as in our own files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.audit.dump import Dump, Row, make_row
from limbeck.errors import DataError
from limbeck.formatting import shown

# Ours first, then the other names that a column may have.
NAMES: Mapping[str, tuple[str, ...]] = {
    "prompt_ids": ("prompt_ids", "prompt_token_ids"),
    "response_ids": ("response_ids", "response_token_ids", "completion_ids"),
    "token_ids": ("token_ids", "input_ids", "tokens"),
    "prompt_length": ("prompt_length", "prompt_len"),
    "mask": ("mask", "loss_mask", "trained", "response_mask", "completion_mask"),
    "student": ("student_logprobs", "student_logprob", "student_log_probs"),
    "teacher": ("teacher_logprobs", "teacher_logprob", "teacher_log_probs"),
    "sampler": (
        "sampler_logprobs", "sampler_logprob", "behaviour_logprobs", "behaviour_logprob", "rollout_logprobs",
        "rollout_log_probs",
    ),
    "advantages": ("advantages", "advantage"),
    "losses": ("losses", "token_losses", "loss"),
    "weights": ("loss_weights",),
    "step": ("step", "global_step", "rollout_id"),
    "step_loss": ("step_loss",),
    "temperature": ("temperature", "temperatures"),
    "reward": ("reward", "score"),
    "finish": ("finish", "finish_reason"),
    "prompt_id": ("prompt_id",),
    "prompt_text": ("prompt_text", "prompt"),
    "response_text": ("response_text", "completion", "response"),
    "messages": ("messages",),
    "top_ids": ("teacher_top_ids",),
    "top_logprobs": ("teacher_top_logprobs",),
}  # fmt: skip
FINISH = {"stop": "stop", "length": "length", "eos": "stop", "completed": "stop", "truncated": "length"}


def find(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column under any of its names; None where there is none."""
    return next((row[known] for known in NAMES[name] if row.get(known) is not None), None)


def read_rows(rows: Sequence[Mapping[str, Any]], name: str, ours: bool = False) -> Dump:
    """A dump from rows of the neutral schema. Raises `DataError`."""
    read = [_row(row, f"{name}, row {index}", index, ours) for index, row in enumerate(rows)]
    return Dump("Limbeck's recorded rollouts" if ours else "the neutral schema", read, complete=not ours)


def _row(row: Mapping[str, Any], where: str, index: int, ours: bool) -> Row:
    prompt_ids, response_ids = _ids(row, where, ours)
    values = {key: find(row, key) for key in ("student", "teacher", "sampler", "advantages", "losses", "weights")}
    if ours:  # of the task's reward: our distillation is a loss of its own, in no advantage
        values["advantages"] = None
    top_ids, top_logprobs = find(row, "top_ids"), find(row, "top_logprobs")
    messages, step_loss = find(row, "messages"), _number(row, "step_loss", where, float)
    if isinstance(values["losses"], int | float):  # one number cannot be a token's
        step_loss, values["losses"] = float(values["losses"]), None
    finish = FINISH.get(str(find(row, "finish")).lower())
    if finish is None and row.get("truncated") is not None:
        finish = "length" if row["truncated"] else "stop"
    return make_row(
        where,
        index,
        prompt_ids,
        response_ids,
        mask=find(row, "mask"),
        values=values,
        top=None if top_ids is None or top_logprobs is None else (top_ids, top_logprobs),
        step=_number(row, "step", where, int),
        temperature=_temperature(row, where),
        step_loss=step_loss,
        reward=_number(row, "reward", where, float),
        finish=finish,
        prompt_id=_text(row, "prompt_id"),
        prompt_text=_text(row, "prompt_text"),
        response_text=_text(row, "response_text"),
        messages=messages if isinstance(messages, list) else None,
    )


def _ids(row: Mapping[str, Any], where: str, ours: bool) -> tuple[Sequence[int], Sequence[int]]:
    """The ids of the prompt and of what follows it."""
    prompt, response, whole = (find(row, name) for name in ("prompt_ids", "response_ids", "token_ids"))
    if prompt is not None and response is not None:
        return prompt, response
    if prompt is not None and whole is not None and (ours or list(whole[: len(prompt)]) != list(prompt)):
        return prompt, whole  # in our own files `token_ids` are those of the response
    if whole is None:
        raise DataError(
            f"{where} has the columns {shown(sorted(row), 300)}, expected prompt_ids and response_ids, or token_ids "
            "with prompt_length. See the guide *Auditing a run*."
        )
    length = len(prompt) if prompt is not None else _number(row, "prompt_length", where, int)
    if length is None:
        length = _leading_untrained(find(row, "mask"), len(whole))
    if not 0 <= length <= len(whole):
        raise DataError(f"{where}: prompt_length is {length}, expected 0 to {len(whole)}.")
    return whole[:length], whole[length:]


def _leading_untrained(mask: Sequence[Any] | None, total: int) -> int:
    """How many tokens precede the first trained one, where the dump does not say how long the prompt is."""
    if mask is None or len(mask) != total:
        return 0
    return next((place for place, trained in enumerate(mask) if trained), total)


def _number(row: Mapping[str, Any], name: str, where: str, kind: Any) -> Any:
    value = find(row, name)
    if value is None:
        return None
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{where}: {name} is {shown(value)}, expected a number.") from None
    if kind is int and not isinstance(value, str) and number != value:
        raise DataError(f"{where}: {name} is {shown(value)}, expected a whole number.")
    return number


def _temperature(row: Mapping[str, Any], where: str) -> float | None:
    """Of the row. A list has one for each token, which must be one number."""
    value = find(row, "temperature")
    if isinstance(value, list) and value:
        if len({v for v in value if v}) > 1:
            raise DataError(f"{where}: temperature is {shown(value)}, expected one number for all tokens of a row.")
        return float(next((v for v in value if v), 0)) or None
    return float(_number(row, "temperature", where, float)) if value is not None else None


def _text(row: Mapping[str, Any], name: str) -> str | None:
    value = find(row, name)
    return value if isinstance(value, str) else None
