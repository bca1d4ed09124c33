"""What a model wrote is printed, and does nothing to the terminal."""

from __future__ import annotations

import pytest

from limbeck.cli.evaluation_view import show_evaluation
from limbeck.sanitize import printable
from limbeck.training.evaluation import Answer, Evaluation
from limbeck.training.intervals import RewardSummary
from tests.finished_run import HOSTILE

COMMANDS = "\x1b\x07\x08\r\x9b\u202e\u202c\u200b\u2066\U000e0041"


def test_what_is_not_seen_becomes_a_symbol_and_the_rest_stays() -> None:
    shown = printable(HOSTILE + COMMANDS)
    assert not set(shown) & set(COMMANDS)
    assert shown.startswith("<script>document.title='owned'</script>")
    plain = "Grüße, 漢字 e\u0301 👍🏽 \u0645\u0631\n\tx = [/bold]"
    assert printable(plain) == plain


def test_printed_answers_command_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer("p", COMMANDS + "[bold]prompt", "?", None, 0, 0, COMMANDS + "[/] response", (), 0.0, 3, "stop")
    show_evaluation(Evaluation(1, 1, False, RewardSummary(0.0, None), {}, (answer,), 1.0), 1)
    printed = capsys.readouterr().out
    assert not set(printed) & set(COMMANDS)
    for part in ("⟨U+001B⟩", "⟨U+202E⟩", "[bold]prompt", "[/] response"):
        assert part in printed
