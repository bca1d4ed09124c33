"""A page of another site whose name was made to resolve to here is of a name that the server was never given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.wire.hosts import hosts_of, is_loopback


@pytest.mark.parametrize(
    "name",
    ["localhost", "LocalHost.", "localhost:30000", "127.0.0.1", "127.0.0.1:80", "127.9.9.9", "[::1]", "[::1]:8642"],
)
def test_loopback_goes_by_its_names(name: str) -> None:
    assert hosts_of("127.0.0.1").knows(name)
    assert hosts_of("0.0.0.0").knows(name)


@pytest.mark.parametrize(
    "name",
    ["evil.example", "evil.example:30000", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.1", "0.0.0.0", "",
     "[::1", "::1", "localhost evil", "localhost/../x", "user@localhost", "localhost:99:1", "localhost\t"],
)  # fmt: skip
def test_loopback_goes_by_no_other(name: str) -> None:
    assert not hosts_of("localhost").knows(name)


def test_a_server_for_others_goes_by_addresses_and_the_names_it_was_given() -> None:
    hosts = hosts_of("teacher.lan", ["Teacher.Default.SVC"])
    for known in ("10.0.0.7:30000", "[2001:db8::1]:80", "teacher.lan", "teacher.default.svc:30000", "localhost"):
        assert hosts.knows(known)
    for unknown in ("evil.example", "teacher.lan.evil.example", "lan"):
        assert not hosts.knows(unknown)
    assert hosts_of("127.0.0.1", ["proxy.lan"]).knows("proxy.lan")


@given(st.text())
def test_whatever_the_header_is_it_is_judged(header: str) -> None:
    hosts = hosts_of("127.0.0.1")
    assert isinstance(hosts.knows(header), bool)
    assert hosts.knows(header) <= (header.lower().startswith(("localhost", "127.", "[")))


def test_an_address_that_is_no_loopback_is_none() -> None:
    assert not any(is_loopback(name) for name in ("0.0.0.0", "::", "evil", "", "127.0.0", "128.0.0.1"))
