"""What a person sees while a run goes on, in a terminal and without one."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from limbeck.config.recipe import Recipe, parse_recipe
from limbeck.trackers.console import (
    LiveConsole,
    PlainConsole,
    describe_evaluation,
    make_console,
    shown_values,
    sparkline,
)


def _recipe() -> Recipe:
    return parse_recipe({"student": {"model": "s"}, "teacher": {"model": "t"}, "task": {"kind": "arithmetic"}})


def _line(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "kind": "train", "reverse_kl/sampled": 0.5 / step, "reward": 0.25, "alarms": [], **more}


def _alarm(step: int) -> dict[str, Any]:
    return _line(step, alarms=[{"name": "length", "message": f"long at {step}"}])


def _panel(console: LiveConsole) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(console._panel())
    return out.getvalue()


def test_the_panel_shows_phase_progress_numbers_and_alarms() -> None:
    console = LiveConsole("demo", Console(file=io.StringIO()))
    console.started(0, 10)
    console.phase(1, "sample")
    for step in (1, 2, 3):
        console.stepped(_alarm(step))
    console.evaluated({"step": 3, "accuracy": 0.5, "accuracy/low": 0.4, "accuracy/high": 0.6})
    text = _panel(console)
    for part in ("demo", "step 3/10", "sample", "left", "0.1667 nats/token", "accuracy 0.500 [0.400, 0.600]"):
        assert part in text
    assert "▲ length (3 times), step 3: long at 3" in text
    assert text.count("▲") == 1, "an alarm of every step is one line"
    console.closed()
    assert "stopped" in _panel(console)


def test_plain_lines_are_one_a_step_with_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    console = PlainConsole()
    console.loading("the run takes at most: 1 MB of disk")
    console.proven(["teacher at T = 0.7: exact, by the server"])
    console.started(2, 5)
    for line in (_line(3), _line(4), _alarm(5)):
        console.stepped(line)
    printed = capsys.readouterr().out.splitlines()
    assert printed.pop(2) == "teacher at T = 0.7: exact, by the server"
    assert printed[:3] == ["the run takes at most: 1 MB of disk", "loading models", "resuming after step 2 of 5"]
    assert printed[3].startswith("step 3/5: reverse KL, sampled 0.1667 nats/token  reward 0.250")
    assert not printed[3].endswith("left"), "one step says nothing: it is the slow one"
    assert printed[4].endswith(" left")
    assert printed[5].startswith("about ")
    assert "1 step of" in printed[5]
    assert "left" not in printed[6]
    assert printed[7] == "step 5: ALARM length: long at 5"


def test_an_alarm_is_printed_when_it_begins_and_counted_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    console = PlainConsole()
    console.started(0, 9)
    for line in (_alarm(1), _alarm(2), _line(3), _alarm(4), _alarm(5)):
        console.stepped(line)
    console.closed()
    printed = [line for line in capsys.readouterr().out.splitlines() if "alarm" in line.lower()]
    assert printed == [
        "step 1: ALARM length: long at 1",
        "step 4: ALARM length: long at 4",
        "alarm length: at 4 steps, from 1 to 5",
    ]


def test_an_evaluation_is_described_by_what_it_has() -> None:
    kl = {"reverse_kl/exact": -3e-9, "reverse_kl/exact/se": 6e-06}
    share = {"step": 4, "accuracy": 1.0, "accuracy/low": 0.9, "accuracy/high": 1.0, "pass@1": 1.0, "pass@4": 1.0, **kl}
    assert describe_evaluation(share) == (
        "evaluation at step 4:  accuracy 1.000 [0.900, 1.000]  pass@4 1.000  reverse KL 0.0000 ± <0.0001 nats/token"
    )
    rewards = {"step": 4, "accuracy": -0.5, "accuracy/low": -0.9, "accuracy/high": -0.1}
    rewards |= {"accuracy/min": -1.0, "accuracy/max": 0.0, "reverse_kl/sampled": 0.25}
    assert describe_evaluation(rewards) == (
        "evaluation at step 4:  mean reward -0.500 [-0.900, -0.100]  reverse KL, sampled 0.2500 nats/token"
    )
    assert describe_evaluation({"step": 0, "accuracy": 1.0}) == "evaluation at step 0:  accuracy 1.000"


def test_a_sampled_kl_is_called_so_and_stands_for_no_exact_one() -> None:
    def names(**line: float) -> list[str]:
        return [name for name, _, _ in shown_values(line) if "KL" in name]

    assert names(**{"reverse_kl/sampled": 0.25}) == ["reverse KL, sampled"]
    assert names(**{"reverse_kl/sampled": 0.25, "reverse_kl/exact": 0.5}) == ["reverse KL"]


def test_the_live_panel_shows_no_negative_zero() -> None:
    console = LiveConsole("demo", Console(file=io.StringIO()))
    console.started(0, 2)
    console.stepped(_line(1, **{"reverse_kl/exact": -1e-9}))
    assert "0.0000 nats/token" in _panel(console)
    assert "-0.0000" not in _panel(console)


def test_loading_is_shown_before_the_first_step_and_ends_with_the_run() -> None:
    out = io.StringIO()
    console = LiveConsole("demo", Console(file=out, width=100, force_terminal=True))
    console.loading("the run takes at most: 1 MB of disk")
    assert _panel(console).split()[:3] == ["demo", "loading", "models"]
    assert "step" not in _panel(console)
    console.proven(["teacher at T = 0.7: exact, in this process"])
    console.closed()
    assert "stopped" in _panel(console), "a run that never began is not done"
    assert "teacher at T = 0.7: exact, in this process" in out.getvalue()
    assert "1 MB of disk" in out.getvalue()


def test_json_lines_are_those_of_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    console = make_console(_recipe(), as_json=True)
    assert console is not None
    console.loading("the run takes at most: 1 MB of disk")
    console.proven(["teacher at T = 1: exact, by the server"])
    console.started(0, 2)
    console.stepped(_line(1))
    assert json.loads(capsys.readouterr().out) == _line(1)


def test_quiet_is_nothing_and_no_terminal_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    assert make_console(_recipe(), quiet=True) is None
    assert isinstance(make_console(_recipe()), PlainConsole)


def test_the_exact_kl_comes_before_the_sampled_one() -> None:
    (name, value, _), *_ = shown_values(_line(1) | {"reverse_kl/exact": 0.1})
    assert (name, value) == ("reverse KL", 0.1)


def test_sparklines_run_from_smallest_to_largest() -> None:
    assert sparkline([0.0, 1.0]) == "▁█"
    assert sparkline([2.0, 2.0]) == "▁▁"


def test_a_step_without_a_reverse_kl_shows_what_was_minimised() -> None:
    from limbeck.trackers.console import shown_values

    assert shown_values({"step": 1, "objective": 0.5})[0] == ("forward KL", 0.5, "0.5000 nats/token")
    assert shown_values({"step": 1, "objective": 0.5, "reverse_kl/exact": 0.2})[0][0] == "reverse KL"
