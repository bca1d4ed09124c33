"""Real runs and real servers with a faulty proxy between them: the same weights, or the run stops and says why."""

from __future__ import annotations

import json

import pytest

from limbeck import api
from tests.chaos import models
from tests.chaos.faults import FAULTS
from tests.chaos.runs import SETUPS, STOCK, Site
from tests.chaos.table import Book

EXCHANGES = ("request bit", "answer bit", "header", "swap", "duplicate", "replay", "reroute", "strip")
CONNECTIONS = ("drop", "delay", "cut", "stall")  # which the schema does not matter for
RESTARTS = ("restart", "other model")
PLAIN = ("limbeck, top K", "limbeck, token", "limbeck, two replicas", "sglang", "vllm", "vllm, equal responses")
PLANNED = [
    *((setup, fault) for fault in EXCHANGES for setup in SETUPS),
    *((setup, fault) for fault in CONNECTIONS for setup in PLAIN),
    *((setup, fault) for fault in RESTARTS for setup in SETUPS),
]
ON_STOCK = [(setup, fault) for fault in (*EXCHANGES[:-1], "drop", "cut") for setup in STOCK]
# What the guide says cannot be found: plain HTTP has no checksum, and SGLang's answers do not name their model.
UNKNOWABLE = [("stock sglang", "answer bit"), ("stock vllm", "answer bit"), ("stock sglang", "reroute")]


@pytest.mark.parametrize(("setup", "fault"), PLANNED)
def test_a_disturbed_run_ends_with_the_same_weights_or_stops(setup: str, fault: str, site: Site, book: Book) -> None:
    outcome = site.disturb(SETUPS[setup], FAULTS[fault], book.seed, name=setup)
    book.add(outcome)
    assert not outcome.bad, outcome


@pytest.mark.parametrize(("setup", "fault"), ON_STOCK)
def test_stock_servers_over_plain_http(setup: str, fault: str, site: Site, book: Book) -> None:
    """As new as they come: they repeat what they can of a request."""
    outcome = site.disturb(STOCK[setup], FAULTS[fault], book.seed, name=setup)
    outcome.known = any(setup.startswith(kind) and fault == one for kind, one in UNKNOWABLE)
    book.add(outcome)
    assert not outcome.bad, outcome


def test_the_sure_student_gives_one_response_to_all_prompts(site: Site) -> None:
    """So that answers with equal ids were exchanged above."""
    setup = SETUPS["limbeck, equal responses"]
    run = api.train(site.recipe(setup, "sure")).folder
    lines = [json.loads(line) for path in (run / "evaluations").glob("*") for line in path.read_text().splitlines()]
    assert {line["response"] for line in lines} == {models.SAYS}
