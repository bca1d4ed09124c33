"""A run that goes on does so with the models it began with: a recipe names folders and servers, not what is in them.

What each model answered to a fixed text is kept in the run's folder, in `teacher-NAME.jsonl` and `reference.jsonl`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from limbeck.assemble.site import Site
from limbeck.contract.answers import logprobs_of_sampled
from limbeck.errors import ContractError
from limbeck.records import Failure, ScoreRequest, request_of
from limbeck.teachers.local import LocalTeacher

TEXT = 12  # tokens
KINDS = {"method": str, "ids": list, "values": list}
TOLERANCE = 0.05  # nats: another device or attention rounds otherwise; another model is further away


async def same_model_as_before(what: str, teacher: LocalTeacher, site: Site) -> None:
    """Raises `ContractError` where a resumed run finds other weights in a model folder."""
    ids = np.arange(1, min(TEXT, teacher.info.context or TEXT) + 1) * 7919 % teacher.info.vocabulary
    request = request_of(tuple(ids.tolist()), 1, 1.0, "full", "probe")
    (scores,) = await teacher.score([request])
    assert not isinstance(scores, Failure)
    values = logprobs_of_sampled(scores, request, teacher.heads)
    keep_answer(what, "local", request, values, TOLERANCE, f"Put the former model back at {teacher.lm.name}", site)


def keep_answer(
    what: str, method: str, request: ScoreRequest, answer: np.ndarray, tolerance: float, remedy: str, site: Site
) -> None:
    """Keep `answer`; on resuming compare it with the one that was kept, where the same was asked in the same way."""
    now = {"method": method, "ids": request.token_ids.tolist(), "values": [float(value) for value in answer]}
    name = f"{what.replace(' ', '-')}.jsonl"
    before = site.folder.read_table(name, KINDS, f"the {what} is then not compared") if site.resumed else None
    if before is not None and before["method"] == now["method"] and before["ids"] == now["ids"]:
        difference = _distance(before["values"], answer)
        if not difference <= tolerance:
            raise ContractError(
                f"{what} is another one than this run began with: a fixed text is {difference:.3g} nats away "
                f"(at most {tolerance} expected). {remedy}, or give the run another name=..."
            )
    site.folder.write_lines(name, [now])


def _distance(before: list[Any], now: np.ndarray) -> float:
    """Nats between the two, at most; infinite where the file has something else than a number for each."""
    if len(before) != len(now) or not all(isinstance(value, int | float) for value in before):
        return math.inf
    return float(np.abs(np.array(before, float) - now).max(initial=0.0))
