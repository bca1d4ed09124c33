"""Where a server of ours listens."""

from __future__ import annotations

import socket

from limbeck.errors import RecipeError
from limbeck.formatting import shown


def listen(host: str, port: int, key: str) -> socket.socket:
    """A socket that is bound; port 0 takes a free one. `key` names the port where a user sets it.

    Raises `RecipeError` where it cannot be had.
    """
    listener: socket.socket | None = None
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it. Without, the second packet of an answer waits 40 ms for the client to acknowledge the
        # first; asyncio sets it for sockets alone whose protocol is named.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((host, port))
    except (OSError, OverflowError, ValueError) as error:  # a port above 65535; a host that is no name
        if listener is not None:
            listener.close()
        why = str(getattr(error, "strerror", None) or error).rstrip(".")
        raise RecipeError(
            f"cannot listen at {shown(host)}, port {port}: {why}. Choose another {key} (0 takes a free one), or stop "
            "what is there."
        ) from None
    return listener


def base_url(host: str, port: int) -> str:
    """
    >>> base_url("127.0.0.1", 80), base_url("::1", 80)
    ('http://127.0.0.1:80', 'http://[::1]:80')
    """
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
