"""What hangs is named, by role, request and seconds, and not more often than it must."""

from __future__ import annotations

import logging
import logging.handlers
import queue

import pytest

from limbeck.training.watchdog import Watchdog


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def dog(monkeypatch: pytest.MonkeyPatch) -> Watchdog:
    """One that looks when it is asked to."""
    monkeypatch.setattr(Watchdog, "_start", lambda self: None)
    return Watchdog(patience=100, clock=Clock())


def test_a_hang_is_reported_again_at_growing_intervals(dog: Watchdog, caplog: pytest.LogCaptureFixture) -> None:
    with dog.watch("teacher", "score of step 7"), dog.watch("sampler", "sample of step 8"):
        for now, messages in ((99, 0), (100, 2), (150, 2), (199, 2), (200, 4), (399, 4), (400, 6)):
            dog.clock.now = now  # type: ignore[attr-defined]
            dog.look()
            assert len(caplog.messages) == messages, now
    assert "teacher: score of step 7 has taken 1 min 40 s so far" in caplog.text
    assert "sampler: sample of step 8 has taken 6 min 40 s so far" in caplog.text
    dog.clock.now = 10_000  # type: ignore[attr-defined]
    assert dog.look() is None
    assert len(caplog.messages) == 6, "what is done is no hang"


def test_a_role_that_is_slow_by_nature_gets_more_time(dog: Watchdog, caplog: pytest.LogCaptureFixture) -> None:
    with dog.watch("learner", "update of step 1"):
        dog.clock.now = 90  # type: ignore[attr-defined]
    with dog.watch("learner", "update of step 2"):
        dog.clock.now += 260  # type: ignore[attr-defined]
        assert dog.look() == pytest.approx(10)  # three times as long as the first
        assert not caplog.messages
        dog.clock.now += 10  # type: ignore[attr-defined]
        dog.look()
        assert len(caplog.messages) == 1


def test_its_own_thread_sees_a_call_that_blocks() -> None:
    records: queue.Queue[logging.LogRecord] = queue.Queue()
    handler = logging.handlers.QueueHandler(records)
    logging.getLogger("limbeck").addHandler(handler)
    try:
        with Watchdog(patience=0.01).watch("grader", "grade of step 1"):
            message = records.get(timeout=10).getMessage()
    finally:
        logging.getLogger("limbeck").removeHandler(handler)
    assert message.startswith("grader: grade of step 1 has taken ")
