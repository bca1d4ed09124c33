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


# A family, a scientist, a flag, a heart on fire; Persian, Hindi, Sinhala.
SPELT = (
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f469\U0001f3fd\u200d\U0001f52c",
    "\U0001f3f3\ufe0f\u200d\U0001f308",
    "\u2764\ufe0f\u200d\U0001f525",
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "\u0915\u094d\u200d\u0937",
    "\u0dc1\u0dca\u200d\u0dbb\u0dd3",
)
LONE = (
    "a\u200db",
    "\u200d",
    "\u0645\u200c b",
    "\U0001f468\u200d",
    "\U0001f468\u200c\U0001f469",
    "\u0645\u200c\u200c\u0645",
)


def test_joiners_stay_where_they_are_spelling_and_are_seen_elsewhere() -> None:
    for text in SPELT:
        assert printable(text) == text
    for text in LONE:
        assert not set(printable(text)) & {"\u200c", "\u200d"}


def test_printed_answers_command_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer("p", COMMANDS + "[bold]prompt", "?", None, 0, 0, COMMANDS + "[/] response", (), 0.0, 3, "stop")
    show_evaluation(Evaluation(1, 1, False, RewardSummary(0.0, None), {}, (answer,), 1.0), 1)
    printed = capsys.readouterr().out
    assert not set(printed) & set(COMMANDS)
    for part in ("⟨U+001B⟩", "⟨U+202E⟩", "[bold]prompt", "[/] response"):
        assert part in printed
