"""Bytes on the wire for each scored token, of every way to have a teacher behind a URL.

    python benchmarks/wire_bytes.py [MODEL] [--prompt 100 --response 200]

Starts `limbeck serve MODEL` (the demo's teacher where none is given) on loopback and asks it through the clients that
train, by SGLang's schema, by vLLM's and by the binary route. Counted are bodies, without HTTP's own few hundred
bytes a request. vLLM's schema has no way to leave the prompt out, so its share is in its numbers. Every
answer is compared with the others: all must say the same to the last bit.

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
from limbeck.teachers.limbeck import limbeck_dialect
from limbeck.teachers.sglang import sglang_dialect
from limbeck.teachers.vllm import vllm_dialect
from limbeck.wire.dialects import Dialect
from limbeck.wire.http import Pool, PoolSettings
from limbeck.wire.score import Question, Reply

SUPPORTS = (0, 5, 20, 100)


async def ask(dialect: Dialect, url: str, question: Question) -> tuple[Reply, int, int]:
    pool = Pool([url], PoolSettings())
    try:
        await dialect.ask(pool, Question(question.token_ids, 1, 1.0))  # what is asked once a run stays out
        sent, received = pool.counts.bytes_sent, pool.counts.bytes_received
        reply = await dialect.ask(pool, question)
        return reply, pool.counts.bytes_sent - sent, pool.counts.bytes_received - received
    finally:
        await pool.close()


async def measure(url: str, ids: np.ndarray, start: int, vocabulary: int) -> list[dict[str, Any]]:
    dialects = {"binary": limbeck_dialect(), "SGLang JSON": sglang_dialect(), "vLLM JSON": vllm_dialect()}
    lines = []
    for k in SUPPORTS:
        if k > vocabulary:
            continue
        replies = {}
        for name, dialect in dialects.items():
            question = Question(ids, start, 0.7, top_k=k)
            replies[name], sent, received = await ask(dialect, url, question)
            lines.append(line("sampled token" if k == 0 else f"top {k}", name, question, sent, received))
        first = replies["binary"]
        for reply in replies.values():
            np.testing.assert_array_equal(reply.logprobs, first.logprobs)
            np.testing.assert_array_equal(reply.top_logprobs, first.top_logprobs)
    states = {}
    for name in ("binary", "SGLang JSON"):
        question = Question(ids, start, 1.0, hidden=True)
        reply, sent, received = await ask(dialects[name], url, question)
        lines.append(line("hidden state", name, question, sent, received))
        states[name] = reply.hidden
    np.testing.assert_array_equal(states["binary"], states["SGLang JSON"])
    whole = {"received": 4.0 * vocabulary, "sent": 0.0}
    return [*lines, {"what": "all logits", "as": "float32, not served", **whole}]


def line(what: str, name: str, question: Question, sent: int, received: int) -> dict[str, Any]:
    count = len(question.scored_ids)
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
    command = [sys.executable, "-m", "limbeck", "serve", args.model, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = ""
            while not (address := re.search(r"http://127\.0\.0\.1:\d+", said)):
                part = process.stderr.readline()
                assert part, f"the server ended: {said}"
                said += part
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
