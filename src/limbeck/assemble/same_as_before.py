"""A run that goes on does so with the models it began with: a recipe names folders and servers, not what is in them.

What each model answered to a fixed text, and the fingerprint of its weights, are kept in the run's folder: in
`teacher-NAME.jsonl`, `reference.jsonl` and, with adapters, `student.jsonl`. A server that sends no fingerprint is known
by its answer alone, and two that round alike are one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.assemble.site import Site
from limbeck.contract.answers import logprobs_of_sampled
from limbeck.errors import ContractError
from limbeck.models.causal_lm import CausalLM
from limbeck.models.fingerprint import fingerprint
from limbeck.records import Failure, ScoreRequest, request_of
from limbeck.teachers.local import LocalTeacher

if TYPE_CHECKING:
    from limbeck.cluster.teachers import TeacherPool

TEXT = 12  # tokens
KINDS = {"method": str, "ids": list, "values": list}  # and "weights", where it is known
TOLERANCE = 0.05  # nats: another device or attention rounds otherwise; another model is further away


async def same_model_as_before(what: str, teacher: LocalTeacher | TeacherPool, site: Site) -> None:
    """Raises `ContractError` where a resumed run finds other weights in a model folder."""
    ids = np.arange(1, min(TEXT, teacher.info.context or TEXT) + 1) * 7919 % teacher.info.vocabulary
    request = request_of(tuple(ids.tolist()), 1, 1.0, "full", "probe")
    (scores,) = await teacher.score([request])
    assert not isinstance(scores, Failure)
    values = logprobs_of_sampled(scores, request, teacher.heads)
    weights, remedy = _weights_of(teacher.lm), _back_at(teacher.lm)
    keep_answer(what, "local", request, values, TOLERANCE, weights, remedy, site)


def same_base_as_before(student: CausalLM, site: Site) -> None:
    """Raises `ContractError` where the model that adapters were trained on has other weights now."""
    now = {"weights": _weights_of(student)}
    before = site.folder.read_table("student.jsonl", {"weights": str}, "the student's base is then not compared")
    if before is not None and site.resumed:
        _compare_weights("student", before["weights"], now["weights"], _back_at(student))
    site.folder.write_lines("student.jsonl", [now])


def keep_answer(
    what: str,
    method: str,
    request: ScoreRequest,
    answer: np.ndarray,
    tolerance: float,
    weights: str | None,
    remedy: str,
    site: Site,
) -> None:
    """Keep `answer`; on resuming compare it with the one that was kept.

    `weights` is their fingerprint, where it is known. One that was known must be known again, and be the same. Raises
    `ContractError` also where there is nothing to compare: the text was asked in another way.
    """
    now = {"method": method, "ids": request.token_ids.tolist(), "values": [float(value) for value in answer]}
    now |= {} if weights is None else {"weights": weights}
    name = f"{what.replace(' ', '-')}.jsonl"
    before = site.folder.read_table(name, KINDS, f"the {what} is then not compared") if site.resumed else None
    if before is not None:
        asked_alike = (before["method"], before["ids"]) == (method, now["ids"])
        difference = _distance(before["values"], answer) if asked_alike else 0.0
        if not difference <= tolerance:
            raise ContractError(
                f"{what} is another one than this run began with: a fixed text is {difference:.3g} nats away "
                f"(at most {tolerance} expected). {remedy}, or give the run another name=..."
            )
        if "weights" in before:
            _compare_weights(what, before["weights"], weights, remedy)
        elif not asked_alike:
            raise ContractError(
                f"{what} cannot be compared with the one that this run began with: a fixed text was asked by the "
                f"method {before['method']!r} then, by {method!r} now. {remedy}, or remove {site.folder.path / name} "
                "to go on without the comparison."
            )
    site.folder.write_lines(name, [now])


def _compare_weights(what: str, before: Any, now: str | None, remedy: str) -> None:
    """To the bit: scores that round differently make another model of the student."""
    if before != now:
        found = "no fingerprint" if now is None else f"the fingerprint {now}"
        raise ContractError(
            f"{what} is another one than this run began with: its weights have {found}, expected {before!r}. {remedy}, "
            "or give the run another name=..."
        )


def _weights_of(lm: CausalLM) -> str:
    return fingerprint(lm.name, str(lm.model.dtype))


def _back_at(lm: CausalLM) -> str:
    return f"Put the former model back at {lm.name}"


def _distance(before: list[Any], now: np.ndarray) -> float:
    """Nats between the two, at most; infinite where the file has something else than a number for each."""
    if len(before) != len(now) or not all(isinstance(value, int | float) for value in before):
        return math.inf
    return float(np.abs(np.array(before, float) - now).max(initial=0.0))
