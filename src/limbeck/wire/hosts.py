"""Which names a server of ours answers to. A page of another site whose name resolves to here (DNS rebinding) is of a
name that the server was never given, and reads nothing.

    hosts = hosts_of("127.0.0.1")
    hosts.knows("localhost:30000")      True
    hosts.knows("evil.example")         False
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{0,5})?")


@dataclass(frozen=True, slots=True)
class Hosts:
    """`names` in lower case. `addresses`: any numeric address too, which no rebinding can make a page's own."""

    names: frozenset[str]
    addresses: bool = False

    def knows(self, header: str) -> bool:
        """Whether a `Host` header names this server."""
        name = host_name(header)
        return bool(name) and (is_loopback(name) or name in self.names or (self.addresses and _is_address(name)))


def hosts_of(listening: str, more: Sequence[str] = ()) -> Hosts:
    """Those of a server that listens at an address or a name. On loopback: loopback's, and `more`."""
    if is_loopback(listening.lower()):
        return Hosts(frozenset(name.lower() for name in more))
    own = (listening, socket.gethostname(), *more)
    return Hosts(frozenset(name.lower() for name in own), addresses=True)


def host_name(header: str) -> str:
    """The name or address of a `Host` header, without port and brackets, in lower case; empty where it is odd.

    >>> host_name("LocalHost.:80"), host_name("[::1]:80"), host_name("a b"), host_name("[::1")
    ('localhost', '::1', '', '')
    """
    match = _HOST.fullmatch(header)
    return match[1].strip("[]").lower().removesuffix(".") if match else ""


def is_loopback(name: str) -> bool:
    """Whether this is a name of the machine itself that no other machine can have."""
    return name == "localhost" or (_is_address(name) and ipaddress.ip_address(name).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
