"""Shows an evaluation: a table with the field's names, units and errors, or JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from limbeck.formatting import duration, interval, number, with_error
from limbeck.sanitize import printable
from limbeck.trackers.console import describe_reward, reward_name

if TYPE_CHECKING:
    from limbeck.training.evaluation import Evaluation

Role = Literal["student", "teacher"]
# Key: name and unit. Keys that are not here are shown by their own names.
NAMES = {
    "prompts": ("prompts", ""),
    "samples_per_prompt": ("samples a prompt", ""),
    "reverse_kl/exact": ("reverse KL, exact", "nats/token"),
    "reverse_kl/sampled": ("reverse KL, sampled", "nats/token"),
    "reverse_kl/reference": ("reverse KL to the reference", "nats/token"),
    "entropy/student": ("entropy of the student", "nats/token"),
    "entropy/teacher": ("entropy of the teacher", "nats/token"),
    "top_k_overlap": ("top tokens in common", ""),
    "importance/mean": ("importance ratio, mean", ""),
    "importance/max": ("importance ratio, largest", ""),
    "importance/effective_share": ("effective sample size", "of the tokens"),
    "mismatch": ("sampler against learner", "nats/token"),
    "objective": ("objective", "nats/token"),
    "teacher/tokens_left_out": ("left out: scores too uncertain", "tokens"),
    "teacher/samples_lost": ("left out: not scored", "responses"),
    "teacher/error_bound/mean": ("error bound of the teacher's scores, mean", "nats"),
    "teacher/error_bound/max": ("error bound of the teacher's scores, largest", "nats"),
}
ORDER = (
    "prompts",
    "samples_per_prompt",
    "accuracy",
    "pass@",
    "reverse_kl/exact",
    "reverse_kl/",
    "entropy/",
    "top_k_overlap",
)
OF_A_PAIR = ("reverse_kl/", "top_k_overlap", "objective")  # 0, 1 and 0 where the two models are one


def named_values(result: Evaluation, role: Role) -> dict[str, float]:
    """The evaluation's values under the names of the model that was evaluated.

    Evaluating a teacher puts it in the student's place. Its entropy is the teacher's all the same.
    """
    return _named(result.values(), role)


def _named(values: dict[str, float], role: Role) -> dict[str, float]:
    if role == "student":
        return values
    return {key.replace("entropy/student", "entropy/teacher"): value for key, value in values.items()}


def show_evaluation(result: Evaluation, answers: int, role: Role = "student") -> None:
    """Print the table, and `answers` of the answers."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for name, found in {"": result, **result.sets}.items():
        if name:
            console.print(Text(f"\n{name}", style="bold"))
        table = Table.grid(padding=(0, 2))
        for label, value, unit in rows(_named(found.own_values(), role), role):
            table.add_row(Text(label, style="dim"), value, Text(unit, style="dim"))
        console.print(table)
    for answer in result.answers[:answers]:
        reward = "" if answer.reward is None else f"reward {number(float(answer.reward), 2)}"
        cut = "cut at rollout.max_tokens" if answer.finish == "length" else ""
        console.print(Text(f"\n{printable(answer.prompt)}", style="bold"), Text(printable(answer.response)))
        if reward or cut:
            console.print(Text("  ".join(part for part in (reward, cut) if part), style="dim"))


def rows(values: dict[str, float], role: Role) -> list[tuple[str, str, str]]:
    """(name, value, unit) of each value; errors and intervals stand beside what they belong to."""
    shown = []
    for key in sorted(values, key=_place):
        parent, _, end = key.rpartition("/")
        if (end in ("se", "low", "high", "min", "max") and parent in values) or key == "seconds":
            continue
        if role == "teacher" and key.startswith(OF_A_PAIR):
            continue
        name, unit = NAMES.get(key, (key, ""))
        if key == "accuracy":
            shown.append((reward_name(values), describe_reward(values), _reward_unit(values)))
        elif isinstance(values[key], int):
            shown.append((name, number(values[key]), unit))
        elif key.startswith("pass@"):
            shown.append((name, number(values[key], 3), unit))
        else:
            shown.append((name, with_error(values[key], values.get(f"{key}/se")), unit))
    if "seconds" in values:
        shown.append(("time", duration(values["seconds"]), ""))
    return shown


def _place(key: str) -> int:
    return next((place for place, prefix in enumerate(ORDER) if key.startswith(prefix)), len(ORDER))


def _reward_unit(values: dict[str, float]) -> str:
    interval_text = "95% interval" if "accuracy/low" in values else ""
    if "accuracy/min" not in values:
        return interval_text
    return ", ".join(
        part
        for part in (interval_text, f"rewards in {interval(values['accuracy/min'], values['accuracy/max'], 2)}")
        if part
    )
