"""`limbeck serve` as a process of its own, as a user starts it; and its app in a thread, which takes no seconds."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from limbeck.models.causal_lm import CausalLM
from limbeck.serve.app import make_app
from limbeck.serve.scorer import Scorer
from limbeck.serve.settings import ServeSettings


@dataclass
class Served:
    process: subprocess.Popen[str]
    url: str
    printed: list[str]  # lines of stderr so far


@contextmanager
def served(*arguments: str, **environment: str) -> Iterator[Served]:
    """A server on a free port, once it takes requests; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "limbeck", "serve", *arguments, "--port", "0"],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    assert process.stderr is not None
    printed: list[str] = []
    address = None
    for line in process.stderr:
        printed.append(line)
        if address := re.search(r"http://127\.0\.0\.1:\d+", line):
            break
    assert address, "".join(printed)
    stderr = process.stderr
    threading.Thread(target=lambda: printed.extend(stderr), daemon=True).start()
    try:
        yield Served(process, address[0], printed)
    finally:
        process.kill()
        process.wait()


@contextmanager
def serving(lm: CausalLM, settings: ServeSettings | None = None) -> Iterator[str]:
    """The address of a server of `lm` in a thread of this process."""
    app = make_app(Scorer(lm, batch_invariant=True), settings or ServeSettings(), "tiny 123")
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()
