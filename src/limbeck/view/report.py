"""`limbeck report`: the page with its data in one file, to be opened anywhere, without a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.errors import LimbeckError, RunError
from limbeck.view import page
from limbeck.view.evaluations import Evaluations
from limbeck.view.runs import RunFiles, Runs

ANSWERS_SIZE = 4 * 2**20  # characters of a run's answers in evaluations


def write_report(path: Path, output: Path, rollouts: int) -> None:
    """Write the report. Raises `RunError` where there is no run, or the file cannot be written."""
    if rollouts < 0:
        raise RunError(f"--rollouts {rollouts}, expected a number from 0.")
    runs = Runs(path)
    if not runs.all():
        raise RunError(f"there is no run in {path} to report. Give a run's folder, such as runs/demo.")
    html = page.in_one_file(gather(runs, rollouts), f"{path.resolve().name} · Limbeck")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(html, encoding="utf-8")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise RunError(f"cannot write {output}: {why}. Give another place with -o.") from None


def gather(runs: Runs, rollouts: int) -> dict[str, Any]:
    """What the page would ask the server for, with the tokens of at most `rollouts` rollouts a run."""
    data: dict[str, Any] = {"runs": runs.describe()}
    data |= {key: {} for key in ("metrics", "rollouts", "details", "evaluations", "disagreement")}
    for description in data["runs"]["runs"]:
        description["folder"] = description["id"]  # a colleague has no use for paths of this machine
    for run in runs.all():
        id_ = run.path.name
        data["metrics"][id_] = run.metrics()
        data["rollouts"][id_], data["details"][id_] = _rollouts(run, rollouts)
        data["evaluations"][id_] = _answers(run.evaluations)
        data["disagreement"][id_] = _disagreements(run, data["details"][id_])
    return data


def _disagreements(run: RunFiles, details: Mapping[str, Any]) -> dict[str, Any]:
    """By the steps that a reader may choose; single places where their rollouts are in the report."""
    found = {steps: run.disagreement.summary(steps) for steps in ("late", "early", "all")}
    for summary in found.values():
        summary["places"] = [place for place in summary.get("places", []) if place["id"] in details]
    return found


def _rollouts(run: RunFiles, limit: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The chosen rows of the index, and those rollouts with all their columns."""
    index = run.rollouts.index()
    rows = _telling(index["rows"], limit)
    details, problems = {}, list(index["problems"])
    for row in rows:
        try:
            details[row["id"]] = run.rollouts.rollout(row["id"])
        except LimbeckError as error:
            problems.append(str(error))
    kept = [row for row in rows if row["id"] in details]
    return {**index, "rows": kept, "recorded": len(index["rows"]), "problems": problems}, details


def _telling(rows: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """Half of them watched prompts, complete histories first; the rest those with the largest KL."""
    if len(rows) <= limit:
        return rows
    watched = sorted(
        (row for row in rows if row.get("source") == "watch"), key=lambda row: (row.get("prompt_id") or "", row["step"])
    )[: limit // 2]
    chosen = {row["id"] for row in watched}
    for row in sorted(rows, key=lambda row: -(row.get("kl_max") or 0.0)):
        if len(chosen) >= limit:
            break
        chosen.add(row["id"])
    return [row for row in rows if row["id"] in chosen]


def _answers(evaluations: Evaluations) -> dict[str, Any]:
    """The last evaluation and the first, and of those between as many as `ANSWERS_SIZE` allows, the latest first.

    `files` has by step what the page asks for as a list, and under `whole` what the list leaves out of each answer.
    """
    steps = evaluations.steps()
    files: dict[int, Any] = {}
    left = ANSWERS_SIZE
    for step in dict.fromkeys([*steps[-1:], *steps[:1], *reversed(steps)]):
        between = len(files) > 1
        try:
            listed = evaluations.answers(step)
            whole, size = _whole_answers(evaluations, step, len(listed["rows"]), left if files else left // 2)
        except LimbeckError:
            continue  # removed while it was read
        count, all_ = len(whole), len(listed["rows"])
        if between and count < all_:
            break
        problems = list(listed["problems"])
        if count < all_:
            problems.append(
                f"The report has {count} of the {all_} answers of step {step}; `limbeck view` shows them all."
            )
        files[step] = {**listed, "rows": listed["rows"][:count], "whole": whole, "problems": problems}
        left -= size
    return {"steps": sorted(files), "recorded": len(steps), "files": files}


def _whole_answers(evaluations: Evaluations, step: int, count: int, limit: int) -> tuple[list[dict[str, Any]], int]:
    """What a list leaves out of the first answers, as far as they have `limit` characters; and how many they have."""
    whole: list[dict[str, Any]] = []
    size = 0
    for number in range(count):
        row = evaluations.answer(step, number)
        kept = {key: row[key] for key in ("prompt", "question", "response", "turns")}
        texts = [*(row[key] for key in ("prompt", "question", "response")), *(turn["text"] for turn in row["turns"])]
        more = sum(map(len, texts))
        if size + more > limit:
            break
        whole.append(kept)
        size += more
    return whole, size
