"""`limbeck serve` under load and malice: how long /health takes, and how much memory the server.

    python benchmarks/serve_load.py [MODEL] [--seconds 10] [--only JSON]

Starts the server (of the demo's teacher where no MODEL is given) on loopback and sends it, from two processes that
never pause, over several connections each, one kind of request after another. Meanwhile /health is asked 50 times a
second, over a new connection each time. Printed for each kind: how many were answered with what, the 95th percentile
and the worst of /health in milliseconds, and the peak of the server's memory above what it had when it was ready, its
second process included.

One JSON line a kind. The bars: 100 ms, 500 ms, 2 GB.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import msgpack
import numpy as np

from limbeck.wire.binary import FORMAT

SCORE = {"sampling_params": {"max_new_tokens": 0}, "return_logprob": True, "logprob_start_len": 0}
JSON, MSGPACK = "application/json", "application/msgpack"


def ids(sequences: int, length: int) -> list[list[int]]:
    return np.random.default_rng(0).integers(3, 15, (sequences, length)).tolist()


def dumped(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def binary(sequences: int, length: int, **more: Any) -> bytes:
    rows = [{"ids": np.full(length, 5, "<i4").tobytes(), "start": 1} for _ in range(sequences)]
    return msgpack.packb({"format": FORMAT, "temperature": 0.7, "sequences": rows, **more})


KINDS: dict[str, tuple[str, str, Callable[[int], bytes]]] = {  # path, media type, body from the model's context
    "nothing else": ("/health", JSON, lambda n: b""),
    "small requests": ("/generate", JSON, lambda n: dumped({"input_ids": ids(4, 32), **SCORE})),
    "long sequences": ("/generate", JSON, lambda n: dumped({"input_ids": ids(64, n), **SCORE})),
    "top 10 of all": ("/v1/completions", JSON, lambda n: dumped(
        {"prompt": ids(64, n), "max_tokens": 1, "prompt_logprobs": 10})),
    "hidden states as JSON": ("/generate", JSON, lambda n: dumped(
        {"input_ids": ids(64, n), "return_hidden_states": True, **SCORE})),
    "too many hidden states": ("/limbeck/score", MSGPACK, lambda n: binary(256, n, hidden=True)),
    "binary, top 10": ("/limbeck/score", MSGPACK, lambda n: binary(256, n, top_k=10)),
    "1 MB of text": ("/generate", JSON, lambda n: dumped({"text": "1" * 2**20, **SCORE})),
    "texts as long as allowed": ("/generate", JSON, lambda n: dumped({"text": ["12+34=" * (n // 6)] * 256, **SCORE})),
    "5 MB of text": ("/tokenize", JSON, lambda n: dumped({"prompt": "1" * (5 * 2**20)})),
    "200,000 listed tokens": ("/generate", JSON, lambda n: dumped(
        {"input_ids": ids(1, n)[0], "token_ids_logprob": [5] * 200_000, **SCORE})),
    "16 MB of [],": ("/generate", JSON, lambda n: b'{"text":[' + b"[]," * (2**24 // 3 - 10) + b"[]]}"),
    "16 MB of {},": ("/generate", JSON, lambda n: b'{"text":[' + b"{}," * (2**24 // 3 - 10) + b"{}]}"),
    "16 MB of numbers": ("/generate", JSON, lambda n: b'{"input_ids":[' + b"7," * (2**23 - 20) + b"7]}"),
    "16 MB of [": ("/generate", JSON, lambda n: b"[" * (2**24 - 1)),
    "16 MB of msgpack arrays": ("/limbeck/score", MSGPACK, lambda n: b"\xdd\x00\xff\xff\xf0" + b"\x90" * 0xFFFFF0),
    "one number of 16 MB": ("/generate", JSON, lambda n: b'{"a":0.' + b"1" * (2**24 - 20) + b"}"),
    "a body too long": ("/generate", JSON, lambda n: b"[" * (2**24 + 2**20)),
}  # fmt: skip


def hammer(url: str, path: str, media: str, body: bytes, until: float, connections: int, answers: Any) -> None:
    """From this process, over several connections."""
    counts: Counter[str] = Counter()
    threads = [threading.Thread(target=ask, args=(url, path, media, body, until, counts)) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers.put(dict(counts))


def ask(url: str, path: str, media: str, body: bytes, until: float, counts: Counter[str]) -> None:
    with httpx.Client(base_url=url, timeout=120) as http:
        while time.time() < until:
            try:
                if body:
                    status = str(http.post(path, content=body, headers={"content-type": media}).status_code)
                else:
                    time.sleep(0.1)
                    status = "idle"
            except httpx.HTTPError as error:
                status = type(error).__name__
            counts[status] += 1


def ask_health(url: str, stop: threading.Event, seconds: list[float]) -> None:
    """By the standard library, whose client costs a millisecond and not a tenth of a second."""
    address = url.removeprefix("http://")
    while not stop.is_set():
        start = time.perf_counter()
        http = HTTPConnection(address, timeout=30)
        try:
            http.request("GET", "/health")
            fine = http.getresponse().read() == b'{"status":"ok"}'
        except OSError:
            fine = False
        finally:
            http.close()
        seconds.append(time.perf_counter() - start if fine else float("inf"))
        time.sleep(0.02)


def memory(process: int) -> int:
    """Bytes of the process and its children that are in memory, without what they share with files."""
    total = 0
    for one in (process, *children(process)):
        try:
            text = Path(f"/proc/{one}/status").read_text()
        except OSError:
            continue
        total += sum(int(kb) << 10 for kb in re.findall(r"RssAnon:\s+(\d+)", text))
    return total


def children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    others = [Path(path).read_text() for path in Path(f"/proc/{process}/task").glob("*/children")]
    return [int(number) for part in {text, *others} for number in part.split()]


def watch_memory(process: int, stop: threading.Event, peak: list[int]) -> None:
    while not stop.is_set():
        peak[0] = max(peak[0], memory(process))
        time.sleep(0.01)


@contextmanager
def served(model: str) -> Iterator[tuple[str, int]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "limbeck", "serve", model, "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if address := re.search(r"http://127\.0\.0\.1:\d+", line):
                threading.Thread(
                    target=lambda: [print(x, end="", file=sys.stderr) for x in process.stderr], daemon=True
                ).start()
                yield address[0], process.pid
                return
        raise SystemExit("the server did not start")
    finally:
        process.terminate()
        process.wait()


@contextmanager
def idle_connections(url: str, count: int, first: bytes) -> Iterator[None]:
    """Connections that send something and then no more, and read nothing."""
    host, port = url.removeprefix("http://").split(":")
    opened = []
    for _ in range(count):
        one = socket.create_connection((host, int(port)), 10)
        one.sendall(first)
        opened.append(one)
    try:
        yield
    finally:
        for one in opened:
            one.close()


def measure(
    url: str, process: int, path: str, media: str, body: bytes, seconds: float, connections: int
) -> dict[str, Any]:
    baseline, peak, health, stop = memory(process), [0], list[float](), threading.Event()
    threads = [
        threading.Thread(target=ask_health, args=(url, stop, health)),
        threading.Thread(target=watch_memory, args=(process, stop, peak)),
    ]
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    until = time.time() + seconds + 1.5
    hammers = [
        context.Process(target=hammer, args=(url, path, media, body, until, connections, answers)) for _ in range(2)
    ]
    for one in hammers:
        one.start()
    time.sleep(1.5)
    for thread in threads:
        thread.start()
    counts: Counter[str] = Counter()
    for _ in hammers:
        counts.update(answers.get())
    for one in hammers:
        one.join()
    stop.set()
    for thread in threads:
        thread.join()
    return {
        "answers": dict(counts), "health": len(health), "p95_ms": round(1e3 * float(np.quantile(health, 0.95)), 1),
        "worst_ms": round(1e3 * max(health), 1), "peak_mb": round((peak[0] - baseline) / 1e6),
        "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def largest(url: str, context: int) -> bytes:
    """A request for as many hidden states as the server sends."""
    sequences = 256
    while True:
        body = binary(sequences, context, hidden=True)
        if httpx.post(f"{url}/limbeck/score", content=body, timeout=300).status_code != 400:
            return body
        sequences = sequences * 9 // 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo:teacher")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--connections", type=int, default=4, help="of each of the two processes")
    parser.add_argument("--only", action="append", help="a kind, by its name")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    with served(arguments.model) as (url, process):
        context = httpx.get(f"{url}/v1/models").json()["data"][0]["max_model_len"]
        for name, (path, media, make) in KINDS.items():
            if not arguments.only or name in arguments.only:
                line = measure(url, process, path, media, make(context), arguments.seconds, arguments.connections)
                print(json.dumps({"kind": name, **line}), flush=True)
        if not arguments.only:
            line = measure(
                url, process, "/limbeck/score", MSGPACK, largest(url, context), arguments.seconds, arguments.connections
            )
            print(json.dumps({"kind": "the largest answers", **line}), flush=True)
            head = b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n"
            for name, first in {"idle": b"", "half a head": b"GET /health HT", "no body": head}.items():
                with idle_connections(url, 900, first):
                    path, media, make = KINDS["small requests"]
                    line = measure(url, process, path, media, make(context), 5, 1)
                    print(json.dumps({"kind": f"900 connections, {name}", **line}), flush=True)
            body = largest(url, context)
            head = f"POST /limbeck/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
            with idle_connections(url, 50, head.encode() + body):
                path, media, make = KINDS["small requests"]
                line = measure(url, process, path, media, make(context), 10, 1)
                print(json.dumps({"kind": "50 answers of the largest kind that nobody reads", **line}), flush=True)


if __name__ == "__main__":
    main()
