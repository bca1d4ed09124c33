"""The process that reads large bodies and writes large answers for `limbeck serve`: see `codec`.

It gets pickled jobs of its parent, never a client's bytes but as bytes, and ends with its input.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable, Mapping
from typing import IO, Any

from limbeck.serve.answers import write, write_tokenized
from limbeck.serve.questions import read
from limbeck.wire.score import WireError

JOBS: Mapping[str, Callable[..., Any]] = {job.__name__: job for job in (read, write, write_tokenized)}


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    _bound_memory(int(sys.argv[1]))
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # only replies may go there
    while True:
        try:
            name, args = pickle.loads(receive(sys.stdin.buffer))
        except EOFError:
            return
        try:
            reply: tuple[str, Any] = ("done", JOBS[name](*args))
        except WireError as error:
            reply = ("refused", (error.kind, str(error)))
        except Exception as error:
            reply = ("failed", f"{type(error).__name__}: {error}")
        del args
        try:
            send(replies, pickle.dumps(reply, pickle.HIGHEST_PROTOCOL))
        except BrokenPipeError:  # the server was killed: nobody waits for it
            os._exit(0)
        del reply


def _bound_memory(most: int) -> None:
    """A body that becomes more than that is refused with a MemoryError, and nothing else is harmed."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def send(stream: IO[bytes], data: bytes) -> None:
    stream.write(len(data).to_bytes(8, "big"))
    stream.write(data)
    stream.flush()


def receive(stream: IO[bytes]) -> bytes:
    """Raises `EOFError` where the other end is gone."""
    length = int.from_bytes(_exactly(stream, 8), "big")
    return _exactly(stream, length)


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise EOFError
    return data


if __name__ == "__main__":
    main()
