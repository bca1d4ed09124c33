"""The results of a contract as a person reads them: short cells, each sentence once, in narrow and wide terminals."""

from __future__ import annotations

import pytest

from limbeck.cli.check_view import show_results
from limbeck.records import ProbeResult
from tests.finished_run import HOSTILE

WHY = (
    "teacher at the server could not score a probe: http://host:30000/generate: the server did not acknowledge the "
    "scoring temperature 0.7: like every stock server it does not know the field, and answered at temperature 1."
)
RESULTS = (
    ProbeResult("alignment", "moved 1.2e-07 nats", "at most 0.001"),
    ProbeResult("method native", f"not taken: {WHY}", ""),
    ProbeResult("method rescale", "top 20: 40% left out", "within 0.02 nats"),
)


def shown(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    width: int,
    results: tuple[ProbeResult, ...],
    problem: str | None = None,
) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    show_results(results, False, problem)
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines()) <= width
    return printed


@pytest.mark.parametrize("width", [80, 120])
def test_a_paragraph_stands_below_the_table_at_full_width(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    printed = shown(capsys, monkeypatch, width, RESULTS)
    table, _, below = printed.partition("\nmethod native\n")
    assert "moved 1.2e-07 nats (expected at most 0.001)" in table, "on one line"
    assert max(len(cell) for cell in table.splitlines()) <= width
    assert len(table.splitlines()) <= 8
    assert " ".join(below.split()).startswith(WHY)
    assert "temperature by: rescale" in below
    assert len(below.strip().splitlines()) <= 2 + len(WHY) // width + 2


@pytest.mark.parametrize("width", [80, 120])
def test_what_the_error_says_is_not_said_twice(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    failed = ProbeResult("alignment", WHY, "", ok=False, remedy="Restart the server with --return-logprob.")
    printed = shown(capsys, monkeypatch, width, (failed,), problem=f"the contract failed: {WHY}")
    assert "acknowledge" not in printed
    assert "FAILED" in printed
    assert "see below" in printed
    assert "Restart the server with --return-logprob." in printed
    named = shown(capsys, monkeypatch, width, (failed,), problem=f"{WHY} {failed.remedy}")
    assert "Restart" not in named


def test_a_probe_that_only_failed_points_to_the_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = ProbeResult("alignment", "failed", "proven", ok=False, remedy=WHY)
    printed = shown(capsys, monkeypatch, 80, (failed,), problem=WHY)
    assert "see below" in printed
    assert "proven" not in printed
    assert "acknowledge" not in printed


def test_a_server_commands_nothing_of_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = (ProbeResult("identity", HOSTILE[-20:] + "[bold]x", ""), ProbeResult("noise", HOSTILE * 3, "", ok=False))
    printed = shown(capsys, monkeypatch, 100, results)
    assert not set(printed) & set("\x1b\u202e\u202c\u200b")
    assert "[bold]x" in printed
