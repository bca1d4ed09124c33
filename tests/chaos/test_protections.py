"""The suite notices when any one of the protections is switched off: the same faults, found before, are then believed.

By the same harness and the same measure as in `test_runs`, with the faults that the protection is there for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.chaos.faults import FAULTS
from tests.chaos.protections import without
from tests.chaos.proxy import Message, Proxy
from tests.chaos.runs import Setup, Site
from tests.chaos.servers import serving
from tests.chaos.table import Book, Outcome
from tests.fake_server import in_thread


def disturbed(site: Site, setup: Setup, fault: str, seed: int, tries: int = 1) -> Iterator[Outcome]:
    for more in range(tries):
        yield site.disturb(setup, FAULTS[fault], seed + more, begins=1)


@pytest.mark.parametrize(
    ("protection", "setup", "fault"),
    [
        ("answer digest", Setup("limbeck", sure=True), "swap"),
        ("answer digest", Setup("limbeck"), "answer bit"),
        ("fingerprint", Setup("sglang"), "reroute"),
        ("fingerprint", Setup("vllm"), "reroute"),
    ],
)
def test_without_it_the_client_believes_what_it_refused(
    protection: str, setup: Setup, fault: str, site: Site, book: Book
) -> None:
    assert not any(one.bad for one in disturbed(site, setup, fault, book.seed))
    with without(protection):
        assert any(one.taken and one.result == "WRONG WEIGHTS" for one in disturbed(site, setup, fault, book.seed, 8))


def test_without_the_nonce_an_earlier_answer_is_believed(site: Site, book: Book) -> None:
    """To the same request: it has the same scores, and only the count of what was taken shows it."""
    assert not any(one.bad for one in disturbed(site, Setup("limbeck"), "replay", book.seed))
    with without("nonce"):
        assert any(one.taken for one in disturbed(site, Setup("limbeck"), "replay", book.seed, 4))


@pytest.mark.parametrize("damaged", [b"\t\n", b"\x8d\n"])
def test_a_header_after_a_damaged_end_of_a_line_counts_as_arrived(damaged: bytes) -> None:
    """As it does for clients and servers, which take a line feed for the end of a line."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: x\r\nlimbeck-nonce: abc\r\n\r\n"
    sent, arrived = Message(head, b""), Message(head.replace(b"\r\nl", damaged + b"l"), b"")
    assert sent.says(bound=True) == arrived.says(bound=True)


@pytest.fixture(scope="module")
def careless(site: Site) -> Iterator[None]:
    """A server that does not look at the digests of requests."""
    with ExitStack() as stack:
        server = stack.enter_context(serving(site.teacher, site.log, off="request digest"))
        site.servers["careless"] = server
        site.proxies["careless"] = [stack.enter_context(in_thread(Proxy(server.port, server.port)))]
        yield


@pytest.mark.usefixtures("careless")
def test_without_the_digest_of_requests_damaged_ones_are_answered(site: Site, book: Book) -> None:
    setup = Setup("limbeck", where="careless", sure=True)
    assert any(one.taken for one in disturbed(site, setup, "request bit", book.seed, 10))
