"""States that are computed ahead: in the order of the plan, under the cap, and whatever the order of fetching."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.cluster.ahead import StatesAhead, Unit
from limbeck.errors import ContractError, TeacherError
from limbeck.learners.batch import make_batch
from limbeck.models.head import Head
from limbeck.models.layout import Layout, split
from limbeck.models.states import LocalStates
from limbeck.records import HiddenScores, Key, Prompt, Rollout, Sampling, Scored, ScoreRequest, request_of

WIDTH = 4  # float32 numbers a token


def unit(number: int, rows: int = 3, tokens: int = 2) -> Unit:
    requests = [request_of([number] * (tokens + 1), 1, 1.0, "full", f"{number}/{row}") for row in range(rows)]
    return Unit(f"u{number}", tuple(requests), WIDTH * 4)


class Model:
    """What a teacher would compute, a unit at a time and only while it may."""

    def __init__(self) -> None:
        self.computed: list[str] = []
        self.begun = 0
        self.may = threading.Semaphore(0)
        self.free = threading.Event()
        self.free.set()
        self.error: Exception | None = None

    def __call__(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        self.begun += 1
        if not self.free.is_set():
            self.may.acquire()
        if self.error is not None:
            raise self.error
        self.computed.append(requests[0].id.partition("/")[0])
        whole_Nd = torch.cat([truth(request) for request in requests])
        return list(torch.split(whole_Nd, [int(request.scored.sum()) for request in requests]))


def truth(request: ScoreRequest) -> Tensor:
    number, row = (int(part) for part in request.id.split("/"))
    return torch.full((int(request.scored.sum()), WIDTH), 100.0 * number + row)


async def until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def fetch_all(states: StatesAhead, places: Sequence[tuple[Unit, int]]) -> None:
    for one, row in places:
        found = await states.fetch(one.id, row, one)
        assert found is not None
        assert torch.equal(found, truth(one.requests[row]))


@pytest.fixture
def model() -> Model:
    return Model()


async def test_what_is_planned_is_computed_in_order_up_to_the_cap(model: Model) -> None:
    units = [unit(number) for number in range(6)]
    states = StatesAhead("teacher", model, cap=3 * units[0].bytes)
    states.plan(units)
    await until(lambda: model.computed == ["0", "1", "2"])
    await asyncio.sleep(0.02)
    assert model.computed == ["0", "1", "2"]  # back-pressure
    assert states.stored == 3 * units[0].bytes
    await fetch_all(states, [(units[0], row) for row in range(3)])
    await until(lambda: model.computed == ["0", "1", "2", "3"])
    await fetch_all(states, [(one, row) for one in units[1:] for row in range(3)])
    assert model.computed == list("012345")
    assert states.stored == 0
    assert states.peak == states.cap


async def test_a_row_is_let_go_of_when_it_is_fetched(model: Model) -> None:
    one = unit(1)
    states = StatesAhead("teacher", model, cap=10**6)
    states.plan([one])
    await until(lambda: states.stored == one.bytes)
    found = await states.fetch("u1", 0, None)
    assert states.stored == one.bytes * 2 / 3
    assert found is not None
    assert found.untyped_storage().nbytes() == one.bytes_of(0)  # not the whole unit in the clothes of a row


@pytest.mark.parametrize("units_in_cap", [0.5, 1, 2, 3.5])
@pytest.mark.parametrize("seed", range(5))
async def test_any_order_of_fetching_ends_and_stays_below_the_cap(model: Model, units_in_cap: float, seed: int) -> None:
    """Several learners at once, each in an order of its own; a unit larger than the cap is alone in memory."""
    rng = random.Random(seed)
    units = [unit(number, rows=rng.randint(1, 4)) for number in range(12)]
    cap = int(units_in_cap * unit(0, rows=4).bytes)
    states = StatesAhead("teacher", model, cap)
    states.plan(units[:8])
    places = [(one, row) for one in units for row in range(len(one.requests))]  # also of some that nobody planned
    rng.shuffle(places)
    states.plan(units[6:10])  # those that are known already are not computed for it again
    await asyncio.wait_for(asyncio.gather(*(fetch_all(states, places[rank::3]) for rank in range(3))), 20)
    await until(lambda: not states._jobs)
    assert states.stored == 0
    assert states.peak <= max(cap, unit(0, rows=4).bytes)


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("ranks", [1, 2, 5])
async def test_learners_that_fetch_their_micro_batches_have_nothing_computed_twice(
    model: Model, ranks: int, layout: Layout
) -> None:
    """The order in which they work is that of the plan, however many they are, and only some units are kept."""
    rng = np.random.default_rng(0)
    requests = [
        request_of(
            [*([prompt] * (5 + prompt)), *rng.integers(0, 9, rng.integers(2, 60))],
            5 + prompt,
            1.0,
            "full",
            f"{prompt}/{k}",
        )
        for prompt in range(24)
        for k in range(4)
    ]
    groups = split(requests, 128, layout)
    units = [Unit(f"u{n}", tuple(requests[i] for i in group), WIDTH * 4) for n, group in enumerate(groups)]
    place = {i: (units[n], row) for n, group in enumerate(groups) for row, i in enumerate(group)}
    states = StatesAhead("teacher", model, cap=(ranks + 2) * max(one.bytes for one in units))
    states.plan(units)
    samples = [Scored(of_request(request), HiddenScores("t", LocalStates(truth(request)), "h")) for request in requests]
    head = {"h": Head(torch.zeros(9, WIDTH))}
    batch = make_batch(samples, layout, 128, torch.device("cpu"), head, ranks=ranks)

    for first in range(0, len(batch.micro), ranks):  # ranks make their passes side by side
        passes = batch.micro.members[first : first + ranks]
        await asyncio.gather(*(fetch_all(states, [place[i] for i in members]) for members in passes))
    assert len(model.computed) == len(units)


def of_request(request: ScoreRequest) -> Rollout:
    logprobs = np.zeros(int(request.scored.sum()), np.float32)
    return Rollout(
        Prompt(request.id, (1,)), Key(request.id), 0, request.token_ids, request.scored, logprobs,
        logprobs.astype(np.int64), Sampling(1.0, 99),
    )  # fmt: skip


async def test_what_is_asked_for_goes_before_what_is_planned(model: Model) -> None:
    model.free.clear()
    units = [unit(number) for number in range(4)]
    states = StatesAhead("teacher", model, cap=10**6)
    states.plan(units)
    await until(lambda: model.begun)
    fetching = asyncio.create_task(fetch_all(states, [(units[3], 0)]))
    await until(lambda: states._jobs["u3"].wanted)
    model.may.release(2)
    await fetching
    assert model.computed == ["0", "3"]  # the one that was under way, then the one that is waited for


async def test_a_row_that_is_fetched_twice_is_computed_twice(model: Model) -> None:
    """Such as of a sample that is recorded before the update. What the others wait for is not computed again."""
    one = unit(1)
    states = StatesAhead("teacher", model, cap=10**6)
    states.plan([one])
    await fetch_all(states, [(one, 0), (one, 1), (one, 0), (one, 2)])
    assert model.computed == ["1", "1"]
    assert states.stored == 0


async def test_a_unit_that_is_not_known_has_to_be_given(model: Model) -> None:
    """As to a process that took the place of another."""
    states = StatesAhead("teacher", model, cap=10**6)
    assert await states.fetch("u1", 0, None) is None
    await fetch_all(states, [(unit(1), 0)])
    found = await states.fetch("u1", 1, None)  # the rest of it is there then
    assert found is not None


async def test_what_nobody_has_any_more_is_forgotten(model: Model) -> None:
    units = [unit(number) for number in range(3)]
    states = StatesAhead("teacher", model, cap=units[0].bytes)
    states.plan(units[:2])
    await until(lambda: model.computed == ["0"])
    states.plan(units[2:], forget=["u0", "u1"])
    await until(lambda: model.computed == ["0", "2"])
    assert set(states.seconds) == {"u2"}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            r"teacher could not score 3 responses of 9 tokens: OutOfMem.*bfloat16",
        ),
        (RuntimeError("no kernel"), r"RuntimeError: no kernel. Nothing was updated."),
        (ContractError("other weights"), "^other weights$"),
    ],
)
async def test_what_fails_in_computing_is_raised_where_it_is_fetched(model: Model, error: Exception, text: str) -> None:
    """And nothing is kept of it: it is tried again for whoever asks again."""
    one, model.error = unit(1), error
    states = StatesAhead("teacher", model, cap=10**6)
    states.plan([one])
    with pytest.raises((TeacherError, ContractError), match=text):
        await states.fetch("u1", 0, one)
    with pytest.raises((TeacherError, ContractError)):
        await states.fetch("u1", 1, one)
    model.error = None
    await fetch_all(states, [(one, 1)])


async def test_computing_has_the_threads_of_the_process(model: Model) -> None:
    found = []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        states = StatesAhead("t", lambda requests: found.append(torch.get_num_threads()) or model(requests), 10**6)
        await fetch_all(states, [(unit(1), 0)])
    finally:
        torch.set_num_threads(before)
    assert found == [2]


def test_the_bytes_of_a_unit_are_those_of_its_scored_tokens() -> None:
    masked = ScoreRequest("1/0", np.arange(5), np.array([False, True, False, True, True]), 1.0)
    assert Unit("u", (masked,), 10).bytes == 30
