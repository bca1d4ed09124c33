"""What a model wrote is printed, and does nothing to the terminal."""

from __future__ import annotations

import re
import timeit
from functools import partial

import pytest

from limbeck.cli.evaluation_view import show_evaluation
from limbeck.sanitize import printable
from limbeck.training.evaluation import Answer, Evaluation
from limbeck.training.intervals import RewardSummary
from tests.finished_run import HOSTILE

SET = re.compile("[\\u0000-\\u0008\\u007f-\\u009f\\u200b-\\u200f\\U000e0000-\\U000e007f]")
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
    "\u061c\u200d\u061c",
    "\u180e\u200c\u180e",
    "\u0645\u200d\u061c",
)


def test_joiners_stay_where_they_are_spelling_and_are_seen_elsewhere() -> None:
    for text in SPELT:
        assert printable(text) == text
    for text in LONE:
        assert not set(printable(text)) & {"\u200c", "\u200d"}


def test_no_joiner_hides_between_characters_that_hide() -> None:
    hidden = [letter for letter in map(chr, range(0x110000)) if printable(letter) != letter]
    assert hidden
    for letter in hidden:
        assert "\u200d" not in printable(f"{letter}\u200d{letter}")


def test_plain_text_is_passed_at_the_speed_of_a_search_for_one_set_of_characters() -> None:
    text = "plain text of a model\n" * 10_000
    least = [min(timeit.repeat(partial(search, text), number=1, repeat=5)) for search in (SET.search, printable)]
    assert least[1] < 4 * least[0]


def test_printed_answers_command_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer("p", COMMANDS + "[bold]prompt", "?", None, 0, 0, COMMANDS + "[/] response", (), 0.0, 3, "stop")
    show_evaluation(Evaluation(1, 1, False, RewardSummary(0.0, None), {}, (answer,), 1.0), 1)
    printed = capsys.readouterr().out
    assert not set(printed) & set(COMMANDS)
    for part in ("⟨U+001B⟩", "⟨U+202E⟩", "[bold]prompt", "[/] response"):
        assert part in printed
