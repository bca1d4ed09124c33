"""The table and the commands at the end of a run."""

from __future__ import annotations

import io
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console

from limbeck.cli.main import main
from limbeck.trackers.ending import comparison, next_commands, show_ending

BEFORE = {"step": 0, "kind": "eval", "accuracy": 0.25, "accuracy/low": 0.1, "accuracy/high": 0.5}
BEFORE |= {"reverse_kl/exact": 0.5}
AFTER = {**BEFORE, "step": 4, "accuracy": 0.75, "reverse_kl/exact": 0.125}
STEP = {"step": 4, "kind": "train", "tokens/sampled": 100, "seconds/step": 2.0}


def shown(table: Any) -> list[list[str]]:
    out = io.StringIO()
    Console(file=out, width=120).print(table)
    return [[cell.strip() for cell in line.strip("┃│").split("┃" if "┃" in line else "│")]
            for line in out.getvalue().splitlines() if line[:1] in "┃│" and line.strip()]  # fmt: skip


def ending(lines: list[dict[str, Any]], **more: Any) -> str:
    out = io.StringIO()
    show_ending(Console(file=out, width=120), Path("runs/a b"), lines, 3.0, **more)
    return " ".join(out.getvalue().split())


def test_rewards_and_the_kl_of_each() -> None:
    assert shown(comparison({"student before": BEFORE, "student after": AFTER, "teacher": AFTER})) == [
        ["", "accuracy", "95% interval", "reverse KL (nats/token)"],
        ["student before", "0.250", "[0.100, 0.500]", "0.5000"],
        ["student after", "0.750", "[0.100, 0.500]", "0.1250"],
        ["teacher", "0.750", "[0.100, 0.500]", ""],
    ]


def test_without_a_grader_or_an_exact_kl() -> None:
    values = {"reverse_kl/sampled": 0.25}
    assert shown(comparison({"student before": values})) == [
        ["", "reverse KL, sampled (nats/token)"],
        ["student before", "0.2500"],
    ]


def test_a_kl_has_its_error_and_a_sampled_one_beside_an_exact_one_its_own_column() -> None:
    sampled, exact = {"reverse_kl/sampled": 0.25, "reverse_kl/sampled/se": 0.0125}, {"reverse_kl/exact": 0.5}
    rows = {"before": sampled, "after": exact | sampled | {"reverse_kl/exact/se": 0.002}}
    assert shown(comparison(rows)) == [
        ["", "reverse KL, sampled (nats/token)", "reverse KL (nats/token)"],
        ["before", "0.2500 ± 0.0125", ""],
        ["after", "", "0.5000 ± 0.0020"],
    ]


def test_rewards_that_are_no_accuracy_have_a_mean() -> None:
    assert shown(comparison({"student before": BEFORE, "student after": {**AFTER, "accuracy/min": -1.0}}))[0][1] == (
        "mean reward"
    )


def test_a_run_ends_with_before_after_and_what_to_try() -> None:
    text = ending([BEFORE, STEP, AFTER])
    for part in ("student before", "student after", "1 step, 50 tokens/s in training, 3.0 s in all"):
        assert part in text
    assert "teacher" not in text.partition("finished")[0]
    assert "finished: runs/a b/model is an ordinary" in text
    assert "limbeck view 'runs/a b' " in text
    assert "limbeck eval 'runs/a b/recipe.toml' --compare" in text
    assert "steps=8" in text
    assert "--compare" not in ending([BEFORE, STEP, AFTER], teacher=AFTER)


def test_a_start_says_what_it_did_itself() -> None:
    lines = [BEFORE, {**STEP, "step": 3, "tokens/sampled": 700}, STEP, AFTER]
    assert "1 step after step 3, 50 tokens/s in training, 3.0 s in this start" in ending(lines, start=3)
    text = ending(lines, start=4)
    assert "no step was left to make: it had ended at step 4 before" in text
    assert "tokens/s" not in text


def test_a_run_without_its_earlier_lines_has_no_table() -> None:
    assert "student" not in ending([AFTER])


def test_the_commands_are_commands() -> None:
    for line in (*next_commands(Path("runs/x"), 4), *next_commands(Path("runs/x"), 4, compared=True)):
        if line.startswith("  "):
            program, command, *words = shlex.split(line, comments=True)
            assert program == "limbeck"
            main.commands[command].make_context(command, words, resilient_parsing=False)
