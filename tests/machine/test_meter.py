"""What is recorded of the process and its machine: since the last reading, and never at the cost of the run."""

from __future__ import annotations

import logging
import threading
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest

from limbeck.machine import gpus, meter
from limbeck.machine.meter import Look, Meter


class Seen:
    """A look that gives these in turn, and then the last one again and again."""

    def __init__(self, *looks: tuple[dict[str, float], dict[str, float]] | Exception) -> None:
        self.looks, self.count = list(looks), threading.Semaphore(0)

    def __call__(self) -> tuple[dict[str, float], dict[str, float]]:
        one = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        self.count.release()
        if isinstance(one, Exception):
            raise one
        return one

    def wait(self, looks: int) -> None:
        for _ in range(looks):
            assert self.count.acquire(timeout=30)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "EVERY", 0.001)


@pytest.fixture
def started() -> Iterator[Any]:
    meters: list[Meter] = []

    def start(look: Any) -> Meter:
        meters.append(Meter(look))
        meters[-1].start()
        return meters[-1]

    yield start
    for one in meters:
        one.stop()


def test_the_most_and_the_mean_since_the_last_reading(started: Any) -> None:
    seen = Seen(({"a": 1.0}, {"b": 0.0}), ({"a": 5.0}, {"b": 1.0}), ({"a": 2.0}, {"b": 0.5}))
    one = started(seen)
    seen.wait(4)  # the fourth began after the third was taken up
    first = one.read()
    assert first["a"] == 5.0
    assert 0 < first["b"] < 1
    seen.wait(2)
    assert (later := one.read())["a"] == 2.0, "the most of before is over"
    assert later["b"] == 0.5


def test_a_step_shorter_than_a_look_reads_what_was_seen_last(started: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "EVERY", 1000.0)
    one = started(Seen(({"a": 3.0}, {"b": 0.25})))
    readings = [one.read() for _ in range(3)]
    assert all(reading["a"] == 3.0 and reading["b"] == 0.25 for reading in readings)


def test_processor_time_is_of_the_time_between_readings(started: Any) -> None:
    one = started(Seen(({}, {})))
    one.read()
    for _ in range(200):
        np.random.default_rng(0).normal(size=10_000).sort()
    assert 0.01 < one.read()["system/cpu"] <= psutil.cpu_count() + 0.5


@pytest.mark.parametrize("when", [1, 2], ids=["first", "later"])
def test_what_cannot_be_read_is_one_warning_and_no_metric(
    started: Any, when: int, caplog: pytest.LogCaptureFixture
) -> None:
    looks: list[Any] = [({"a": 1.0}, {})] * (when - 1)
    seen = Seen(*looks, PermissionError("/proc is not yours"))
    one = started(seen)
    seen.wait(when)
    while one._thread is not None:
        pass
    assert one.read() == {}
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "what the machine is busy with cannot be read, and is not recorded from now on: PermissionError: /proc is not "
        "yours"
    ]


def test_a_stopped_meter_leaves_no_thread_and_one_that_was_not_started_reads_nothing(started: Any) -> None:
    one = started(Seen(({}, {})))
    thread = one._thread
    assert thread is not None
    one.stop()
    assert not thread.is_alive()
    assert one.read() == Meter().read() == {}


def test_a_look_at_this_machine() -> None:
    look = Look()
    np.ones(10_000).sum()
    most, means = look()
    assert most["system/memory"] == pytest.approx(psutil.Process().memory_info().rss, rel=0.5)
    assert 0 < most["system/memory/machine"] <= 1
    assert all(0 <= share <= 1 for share in means.values())
    block = np.ones(2**24)  # 128 MB
    assert look()[0]["system/memory"] >= most["system/memory"] + block.nbytes / 2


class Cuda:
    """`torch.cuda` of two devices, of which the second is used."""

    def __init__(self, initialised: bool = True, utilisation: float | Exception = 73) -> None:
        self.initialised, self.share, self.resets = initialised, utilisation, []

    def is_initialized(self) -> bool:
        return self.initialised

    def device_count(self) -> int:
        return 2

    def memory_reserved(self, number: int) -> int:
        return [0, 700][number]

    def mem_get_info(self, number: int) -> tuple[int, int]:
        return 200, 1000

    def max_memory_allocated(self, number: int) -> int:
        return [0, 600][number]

    def max_memory_reserved(self, number: int) -> int:
        return [0, 750][number]

    def reset_peak_memory_stats(self, number: int) -> None:
        self.resets.append(number)

    def utilization(self, number: int) -> float:
        if isinstance(self.share, Exception):
            raise self.share
        return self.share


def _with(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpus.sys.modules, "torch", types.SimpleNamespace(cuda=cuda))


def test_of_gpus_those_that_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(cuda := Cuda(), monkeypatch)
    most, means = Look()()
    found = {key: value for key, value in {**most, **means}.items() if "gpu" in key}
    assert found == {
        "system/gpu/1/memory": 600.0,
        "system/gpu/1/reserved": 750.0,
        "system/gpu/1/machine": 0.8,
        "system/gpu/1/utilisation": 0.73,
    }
    assert cuda.resets == [1], "so that the next look sees its own peak"
    assert gpus.peak_memory() == 600


def test_cuda_is_never_started_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _with(Cuda(initialised=False), monkeypatch)
    assert not any("gpu" in key for part in Look()() for key in part)
    assert gpus.peak_memory() == 0


def test_utilisation_that_cannot_be_had_is_asked_for_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    _with(Cuda(utilisation=ModuleNotFoundError("pynvml does not seem to be installed")), monkeypatch)
    look = Look()
    for _ in range(3):
        most, means = look()
    assert "system/gpu/1/memory" in most
    assert "system/gpu/1/utilisation" not in means
    assert len([record for record in caplog.records if "pip install nvidia-ml-py" in record.getMessage()]) == 1
