"""What a teacher at the wrong temperature costs: docs/studies/temperature.md.

    python studies/temperature.py [--seeds 0 1 2 3 4] [--jobs 2] [--quick]

The student samples at T = 0.7 or 1.3 and is trained on the reverse KL over the whole vocabulary. Its training prompts
are scored by the same teacher at T (`right`), at 1 whatever is asked (`at-1`), or at 0.01 (`greedy`). Held-out prompts
are scored at T in all of them: `reverse_kl/exact` of the evaluations is the distance to the teacher that was asked for.
`-limit` is the student that each would end as: one whose distribution at T is the teacher's at that temperature.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import COLOURS, Results, Row, Study, TrainingClock, draw_curves, main, picture, table
from pair import HELD_OUT, PAIR, QUICK_PAIR, make_pair, recipe, sharpened

import limbeck
from limbeck.config.teacher import LocalTeacherConfig
from limbeck.errors import ContractError
from limbeck.learners.policy import LocalPolicy
from limbeck.models.loading import load_model
from limbeck.records import Failure, HiddenScores, ScoreRequest, Scores
from limbeck.teachers.local import LocalTeacher

TEMPERATURES = (0.7, 1.3)
TEACHERS = {"right": "teacher at T", "at-1": "teacher at 1", "greedy": "teacher at 0.01"}
SCORED_AT = {"at-1": 1.0, "greedy": 0.01}  # vLLM raises any temperature between 0 and this one to it
LIMIT = "-limit"
REFUSED = {"claims-T": "refused, claiming T", "honest": "refused, honest about 1"}
SETTING = {
    "steps": 100, "prompts_per_step": 32, "lr": 1e-3, "warmup_steps": 10, "evaluate_every": 10, "eval_prompts": 512,
    "pair": PAIR,
}  # fmt: skip
QUICK = {"steps": 2, "prompts_per_step": 4, "evaluate_every": 1, "eval_prompts": 8, "pair": QUICK_PAIR}


class MovedTeacher:
    """Scores training prompts at `scored_at` whatever their request says, held-out ones at the request's temperature.

    States are divided by T where they are read, so a head whose logits are T/S of the teacher's gives softmax(u/S).
    """

    name = "teacher"

    def __init__(self, model: str, temperature: float, scored_at: float) -> None:
        self.scorer = local_teacher(model)
        right = self.scorer.head
        moved = replace(right, multiplier=right.multiplier * temperature / scored_at)
        self.held_out, self.training = right.fingerprint(), moved.fingerprint()
        self.heads = {self.held_out: right, self.training: moved}
        self.info = self.scorer.info

    async def score(self, unit: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        answers = await self.scorer.score(unit)
        heads = [self.held_out if request.teacher == HELD_OUT else self.training for request in unit]
        return [
            replace(answer, head=head) if isinstance(answer, HiddenScores) else answer
            for answer, head in zip(answers, heads, strict=True)
        ]


class StockServer:
    """Scores at temperature 1 whatever is asked, as stock SGLang and vLLM do; `claims` stamps what was asked for."""

    name = "stock"

    def __init__(self, model: str, claims: bool) -> None:
        scorer = local_teacher(model)
        self.policy, self.info, self.claims = LocalPolicy(scorer.lm), scorer.info, claims

    async def score(self, unit: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        answers = await self.policy.score([replace(request, temperature=1.0) for request in unit])
        if not self.claims:
            return answers
        return [
            answer if isinstance(answer, Failure) else replace(answer, temperature=request.temperature)
            for answer, request in zip(answers, unit, strict=True)
        ]


def local_teacher(model: str) -> LocalTeacher:
    import torch

    return LocalTeacher("teacher", load_model(LocalTeacherConfig(model=model), torch.device("cpu")))


def run(condition: str, seed: int, setting: Mapping[str, Any], scratch: Path) -> list[Row]:
    if condition in REFUSED:
        return [{"step": 0, "refusal": refusal(condition == "claims-T", seed, setting, scratch)}]
    temperature, name = float(condition[1:4]), condition[5:].removesuffix(LIMIT)
    scored_at = SCORED_AT.get(name, temperature)
    tables = recipe(setting, seed, scratch, temperature)
    teacher = tables["teacher"]["model"]
    if condition.endswith(LIMIT):
        student = sharpened(scratch / "student", Path(teacher), temperature / scored_at)
        return [{"step": setting["steps"], **limbeck.evaluate(tables, model=student).values()}]
    clock = TrainingClock()
    moved = MovedTeacher(teacher, temperature, scored_at)
    result = limbeck.train(tables, teacher=moved, observers=[clock], display=False)
    seen = {line["step"]: {SEEN: line["reverse_kl/exact"]} for line in result.steps}
    return [{**row, **seen.get(row["step"], {})} for row in clock.rows]


def refusal(claims: bool, seed: int, setting: Mapping[str, Any], scratch: Path) -> str:
    """What Limbeck says to a teacher that scores at 1 while the student samples at 0.7."""
    tables = recipe(setting, seed, scratch, 0.7)
    tables["objective"] = {"support": "sampled"}
    try:
        limbeck.train(tables, teacher=StockServer(tables["teacher"]["model"], claims), fresh=True, display=False)
    except ContractError as error:
        return str(error)
    raise AssertionError("a teacher at another temperature was trained on")


SEEN = "seen"  # the KL in the run's own metrics of training: to the teacher as it scores
KEYS = {
    "accuracy": "accuracy",
    "reverse_kl/exact": "KL to the true q_T",
    "entropy/student": "entropy",
    SEEN: "KL in the run's own metrics",
}


def report(results: Results) -> str:
    parts = []
    for temperature in TEMPERATURES:
        mine = {name: f"T{temperature}-{name}" for name in TEACHERS if f"T{temperature}-{name}" in results.conditions}
        limits = {name: one + LIMIT for name, one in mine.items() if one + LIMIT in results.conditions}
        rows = [["before", *cells(results, next(iter(mine.values())), 0)]] if mine else []
        rows += [[TEACHERS[name], *cells(results, one)] for name, one in mine.items()]
        rows += [[f"limit, {TEACHERS[name]}", *cells(results, one)] for name, one in limits.items()]
        parts.append(table([f"T = {temperature}", *KEYS.values()], rows))
        gaps = [
            [TEACHERS[name], *(results.difference(one, mine["right"], key) for key in KEYS)]
            for name, one in mine.items()
            if "right" in mine and name != "right"
        ]
        parts.append(table([f"T = {temperature}, minus teacher at T at equal seeds", *KEYS.values()], gaps))
    for condition, text in REFUSED.items():
        parts += [f"{text}: {results.runs[condition, seed][0]['refusal']}" for seed in results.seeds(condition)[:1]]
    return "\n\n".join(parts)


def cells(results: Results, condition: str, step: int | None = None) -> list[object]:
    """One for each key; empty where it was not measured."""
    rows = [row for row in results.runs[condition, results.seeds(condition)[0]] if step in (None, row["step"])]
    return [results.at(condition, key, step) if any(key in row for row in rows) else "" for key in KEYS]


def draw(results: Results, path: Path) -> None:
    labels = {"accuracy": "accuracy", "reverse_kl/exact": "KL to the true q_T (nats / token)",
              "entropy/student": "entropy (nats / token)"}  # fmt: skip
    with picture(path, len(labels), len(TEMPERATURES)) as axes:
        for row, temperature in zip(axes, TEMPERATURES, strict=True):
            for one, (key, label) in zip(row, labels.items(), strict=True):
                mine = {f"T{temperature}-{name}": text for name, text in TEACHERS.items()}
                draw_curves(one, results, mine, key)
                for condition, colour in zip(mine, COLOURS, strict=False):
                    if condition + LIMIT in results.conditions:
                        limit = results.at(condition + LIMIT, key).mean
                        one.axhline(limit, color=colour, linestyle=":", linewidth=1)
                one.set(title=f"T = {temperature}", ylabel=label, xlabel="update")
                one.set_ylim(bottom=0)
            row[0].set_ylim(0, 1.02)
            row[1].set_yscale("log")
            row[1].set_ylim(1e-3, 2)
        axes[0, 0].legend()


TRAINED = [f"T{temperature}-{name}" for temperature in TEMPERATURES for name in TEACHERS]
CONDITIONS = [*TRAINED, *(one + LIMIT for one in TRAINED), *REFUSED]
STUDY = Study("temperature", SETTING, QUICK, CONDITIONS, run, report, draw, make_pair)

if __name__ == "__main__":
    sys.exit(main(STUDY))
