"""How a run ends for people: the student before and after beside the teacher, and what to try next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.formatting import counted, duration, interval, number
from limbeck.trackers.console import reward_name, shown_kl

Evaluations = Mapping[str, Mapping[str, Any]]  # by whose they are: the values as in metrics.jsonl


def comparison(evaluations: Evaluations, caption: str = "") -> Any:
    """A table of evaluations on the same prompts: rewards where there are any, and the reverse KL to the teacher."""
    from rich.table import Table
    from rich.text import Text

    graded = [values for values in evaluations.values() if "accuracy" in values]
    table = Table("", title="held-out prompts", caption=caption)
    if graded:
        table.add_column(reward_name(next((v for v in graded if "accuracy/min" in v), graded[0])))
        table.add_column("95% interval")
    kls = {name: kl for name, values in evaluations.items() if name != "teacher" and (kl := shown_kl(values))}
    for kind in (kinds := list(dict.fromkeys(kl[0] for kl in kls.values())) or ["reverse KL"]):
        table.add_column(f"{kind} (nats/token)")
    for name, values in evaluations.items():
        reward = values.get("accuracy")
        range_ = interval(values.get("accuracy/low"), values.get("accuracy/high"))
        cells: list[Any] = [number(None if reward is None else float(reward), 3), Text(range_)] if graded else []
        table.add_row(name, *cells, *(kls[name][1] if name in kls and kls[name][0] == kind else "" for kind in kinds))
    return table


def show_ending(
    console: Any,
    folder: Path,
    lines: Sequence[Mapping[str, Any]],
    seconds: float,
    teacher: Mapping[str, Any] | None = None,
    start: int = 0,
) -> None:
    """Of a finished run with these lines of `metrics.jsonl`: the table, and what to try next.

    `seconds` are those of this start of it, after step `start`; `teacher` is its evaluation, where there is one.
    """
    from rich.text import Text

    steps = [line for line in lines if line["kind"] == "train"]
    evaluations = [line for line in lines if line["kind"] == "eval"]
    if len(evaluations) > 1:  # else the lines before are gone, and what is left compares nothing
        rows = {"student before": evaluations[0], "student after": evaluations[-1]}
        console.print(comparison(rows | ({"teacher": teacher} if teacher else {}), _pace(steps, seconds, start)))
    for line in next_commands(folder, max((step["step"] for step in steps), default=0), teacher is not None):
        console.print(Text(line), soft_wrap=True)


def _pace(steps: Sequence[Mapping[str, Any]], seconds: float, start: int) -> str:
    """`300 steps, 4,100 tokens/s in training, 2 min 03 s in all`; only what was done after step `start`."""
    made = [line for line in steps if line["step"] > start]
    if not made:
        return f"no step was left to make: it had ended at step {start} before"
    trained = sum(line.get("seconds/step", 0.0) for line in made)
    speed = sum(line.get("tokens/sampled", 0) for line in made) / trained if trained else None
    count = counted(len(made), "step") + (f" after step {start}" if start else "")
    return (
        f"{count}, {number(speed, 0)} tokens/s in training, {duration(seconds)} in {'this start' if start else 'all'}"
    )


def next_commands(folder: Path, steps: int, compared: bool = False) -> list[str]:
    """What to try next with a run of so many steps. `compared`: the table has the teacher already."""
    run, recipe, model = (shlex.quote(str(path)) for path in (folder, folder / "recipe.toml", folder / "model"))
    evaluate = (
        (f"limbeck eval {recipe} --model {model} --answers 3", "read some of its answers")
        if compared
        else (f"limbeck eval {recipe} --compare", "before, after, and the teacher on the same prompts")
    )
    commands = [
        (f"limbeck view {run}", "curves, tokens, where the two models still disagree"),
        evaluate,
        (f"limbeck train {recipe} steps={2 * steps}", "more steps, from the last checkpoint"),
        (f"limbeck train {recipe} name=hot rollout.temperature=1.3", "another temperature, in a run of its own"),
        (f"limbeck export {run} OUT --dtype bfloat16", "the weights in the dtype you serve"),
    ]
    width = max(len(command) for command, _ in commands)
    lines = [f"  {command:<{width}}  # {about}" for command, about in commands]
    return ["", f"finished: {folder / 'model'} is an ordinary Hugging Face folder. To go on:", *lines]
