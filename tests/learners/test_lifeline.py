"""A lifeline tells a rank that died from one that left."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

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
def three() -> Iterator[list[Lifeline]]:
    """All are closed in the end: a process whose lifeline is cut would be ended."""
    store = Store()
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda rank: Lifeline.of(rank, 3, store, "127.0.0.1", 10), range(3)))
    yield found
    for lifeline in found:
        lifeline.close()


def test_one_that_leaves_on_purpose_alarms_nobody(three: list[Lifeline]) -> None:
    three[1].close()
    assert not three[0].is_cut(0.2)
    three[0].close()
    assert not three[2].is_cut(0.2)


def test_the_end_of_one_is_noticed_by_the_first_and_that_of_the_first_by_all(three: list[Lifeline]) -> None:
    three[1]._connections[0].shutdown(socket.SHUT_RDWR)
    assert three[0].is_cut(10)
    for connection in three[0]._connections:
        connection.shutdown(socket.SHUT_RDWR)
    assert three[2].is_cut(10)


def test_a_stranger_is_not_taken_for_a_rank() -> None:
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
