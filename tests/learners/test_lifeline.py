"""A lifeline tells a rank that died from one that left."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from limbeck.learners import lifeline
from limbeck.learners.lifeline import Lifeline


class Store:
    """As `torch.distributed` has it: `get` waits."""

    def __init__(self) -> None:
        self.value, self.there = b"", threading.Event()

    def set(self, key: str, value: str) -> None:
        self.value = value.encode()
        self.there.set()

    def get(self, key: str) -> bytes:
        assert self.there.wait(10)
        return self.value


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Whether a process would have been ended."""
    event = threading.Event()
    monkeypatch.setattr(lifeline, "GRACE", 0.01)
    monkeypatch.setattr("limbeck.learners.lifeline.os._exit", lambda _: event.set())
    return event


def lifelines(count: int) -> list[Lifeline]:
    store = Store()
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda rank: Lifeline.of(rank, count, store, "127.0.0.1", 10), range(count)))


def test_one_that_leaves_on_purpose_alarms_nobody(ended: threading.Event) -> None:
    first, second = lifelines(2)
    second.close()
    assert not first.is_cut(0.3)
    first.close()
    assert not second.is_cut(0.01)
    assert not ended.is_set()


def test_the_end_of_one_is_noticed_by_the_first_and_that_of_the_first_by_all(ended: threading.Event) -> None:
    first, second, third = lifelines(3)
    second._connections[0].shutdown(socket.SHUT_RDWR)
    assert first.is_cut(10)
    assert ended.wait(10)
    for connection in first._connections:
        connection.shutdown(socket.SHUT_RDWR)
    assert third.is_cut(10)


def test_a_stranger_is_not_taken_for_a_rank(ended: threading.Event) -> None:
    store = Store()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(Lifeline.of, 0, 2, store, "127.0.0.1", 10)
        host, port, token = store.get("").decode().split()
        with socket.create_connection((host, int(port))) as stranger:
            stranger.sendall(b"?" * len(token))
            assert stranger.recv(1) == b""
        second = Lifeline.of(1, 2, store, "127.0.0.1", 10)
        first = waiting.result()
    second.close()
    first.close()
    assert not ended.is_set()
