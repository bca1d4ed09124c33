"""Bytes on the wire for each scored token, of every way to have a teacher behind a URL.

    python benchmarks/wire_bytes.py [MODEL] [--prompt 100 --response 200]

Starts `limbeck serve MODEL` (the demo's teacher where none is given) on loopback and asks it through the clients that
train, by SGLang's schema, by vLLM's and by the binary route. Counted are bodies, without HTTP's own few hundred
bytes a request. vLLM's schema has no way to leave the prompt out, so its share is in its numbers. Every
answer is compared with the others: log-probs must be the same to the last bit, states to 1e-4. Rounded states come with
what the server measured of the rounding, at T = 0.7, of random tokens.

One JSON line a way, then a table.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
from typing import Any

import numpy as np
import torch

from limbeck.config.base import ModelConfig
from limbeck.models.loading import load_model
from limbeck.records import ScoreRequest, request_of
from limbeck.teachers.connect import BACKENDS
from limbeck.wire.dialects import BinaryDialect, Dialect
from limbeck.wire.http import Pool, PoolSettings
from limbeck.wire.score import Reply

SUPPORTS = (0, 5, 20, 100)
KINDS = {"binary": "limbeck", "SGLang JSON": "sglang", "vLLM JSON": "vllm"}


async def ask(dialect: Dialect, url: str, request: ScoreRequest) -> tuple[Reply, int, int]:
    pool = Pool([url], PoolSettings())
    try:
        await dialect.ask(
            pool, request_of(request.token_ids, 1, 1.0), acknowledges=True
        )  # what is asked once a run stays out
        sent, received = pool.counts.bytes_sent, pool.counts.bytes_received
        reply = await dialect.ask(pool, request, acknowledges=True)
        return reply, pool.counts.bytes_sent - sent, pool.counts.bytes_received - received
    finally:
        await pool.close()


async def measure(url: str, ids: np.ndarray, start: int, vocabulary: int) -> list[dict[str, Any]]:
    dialects = {name: BACKENDS[kind].dialect(BACKENDS[kind].config(url=url)) for name, kind in KINDS.items()}
    lines = []
    for k in SUPPORTS:
        if k > vocabulary:
            continue
        replies = {}
        for name, dialect in dialects.items():
            request = request_of(ids, start, 0.7, k or "sampled")
            replies[name], sent, received = await ask(dialect, url, request)
            lines.append(line("sampled token" if k == 0 else f"top {k}", name, request, sent, received))
        first = replies["binary"]
        for reply in replies.values():
            np.testing.assert_array_equal(reply.logprobs, first.logprobs)
            np.testing.assert_array_equal(reply.top_logprobs, first.top_logprobs)
    states = {}
    asked = {"binary": dialects["binary"], "SGLang JSON": dialects["SGLang JSON"]}
    asked |= {f"binary, {dtype}": BinaryDialect(dtype) for dtype in ("bfloat16", "int8")}
    for name, dialect in asked.items():
        request = request_of(ids, start, 0.7 if "," in name else 1.0, "full")  # rounding is measured at T
        reply, sent, received = await ask(dialect, url, request)
        lines.append(line("hidden state", name, request, sent, received))
        if reply.errors is not None:
            lines[-1] |= {
                "median nats": round(float(np.median(reply.errors)), 4),
                "max nats": float(reply.errors.max()),
            }
        states[name] = reply.hidden
    # SGLang's schema has one state more, which is another shape of pass and rounds otherwise
    np.testing.assert_allclose(states["binary"], states["SGLang JSON"], atol=1e-4)
    full = {"received": 4.0 * vocabulary, "sent": 0.0}
    return [*lines, {"what": "all logits", "as": "float32, not served", **full}]


def line(what: str, name: str, request: ScoreRequest, sent: int, received: int) -> dict[str, Any]:
    count = len(request.scored_ids)
    return {"what": what, "as": name, "received": round(received / count, 1), "sent": round(sent / count, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description="bytes on the wire a scored token")
    parser.add_argument("model", nargs="?", default="demo:teacher")
    parser.add_argument("--prompt", type=int, default=100, help="tokens")
    parser.add_argument("--response", type=int, default=200, help="tokens")
    args = parser.parse_args()
    lm = load_model(ModelConfig(model=args.model), torch.device("cpu"))
    length = min(args.prompt + args.response, lm.context or args.prompt + args.response)
    start = length * args.prompt // (args.prompt + args.response)
    ids = np.random.default_rng(0).integers(0, lm.vocabulary, length)
    command = [sys.executable, "-m", "limbeck", "serve", args.model, "--port", "0", "--batch-invariant"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            printed = ""
            while not (address := re.search(r"http://127\.0\.0\.1:\d+", printed)):
                part = process.stderr.readline()
                assert part, f"the server ended: {printed}"
                printed += part
            lines = asyncio.run(measure(address[0], ids, start, lm.head().vocabulary))
        finally:
            process.terminate()
    shape = {"model": args.model, "vocabulary": lm.head().vocabulary, "width": lm.head().weight_Vd.shape[1],
             "prompt": start, "response": length - start}  # fmt: skip
    for one in lines:
        print(json.dumps({**shape, **one}))
    print(f"\n{'':14} {'':20} {'received':>12} {'sent':>8}   bytes a scored token")
    for one in lines:
        print(f"{one['what']:14} {one['as']:20} {one['received']:12,.1f} {one['sent']:8,.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
