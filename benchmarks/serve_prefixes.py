"""What the cache of prefixes buys `limbeck serve`, and what it costs where nothing returns.

    python benchmarks/serve_prefixes.py [MODEL] [--prompt 512 --response 128 --samples 8 --prompts 4 --rounds 5]

Scores the same sequences (random tokens) with and without it, in batches of 8,192 tokens as the queue makes them, one
after the other and in alternating order, in this process and on one thread unless OMP_NUM_THREADS says otherwise:

    samples, prompt unscored    what kind `limbeck` asks: scores of the responses alone
    samples, prompt scored      what slime and miles ask: scores of every token
    turns                       an agent: each request is the one before and a response more
    nothing shared              as many tokens of mixed lengths, no two alike

The cache begins empty in every round. One JSON line a kind: the median seconds without, the median of the paired ratios
(with over without, below 1 is faster) with the least and the largest, and the largest difference of a log-prob.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from limbeck.config.base import ModelConfig
from limbeck.models.loading import load_model
from limbeck.records import request_of
from limbeck.serve.limits import Asked
from limbeck.serve.scorer import Scorer

BATCH = 8192  # tokens


def workloads(options: argparse.Namespace, vocabulary: int) -> dict[str, list[Asked]]:
    rng = np.random.default_rng(0)

    def tokens(count: int) -> list[int]:
        return [int(i) for i in rng.integers(3, vocabulary, count)]

    prompts = [tokens(options.prompt) for _ in range(options.prompts)]
    texts = [prompt + tokens(options.response) for prompt in prompts for _ in range(options.samples)]
    turns, text = [], tokens(options.prompt // 4)
    while len(text) + options.response <= options.prompt + options.response:
        start, text = len(text), text + tokens(options.response)
        turns.append(Asked(request_of(text, start, 0.7)))
    total, mixed = sum(map(len, texts)), list[Asked]()
    while total > 0:
        length = int(rng.integers(options.response // 2, options.prompt + options.response))
        mixed.append(Asked(request_of(tokens(length), length // 2, 0.7)))
        total -= length
    return {
        "samples, prompt unscored": [Asked(request_of(text, options.prompt, 0.7)) for text in texts],
        "samples, prompt scored": [Asked(request_of(text, 1, 0.7)) for text in texts],
        "turns": turns,
        "nothing shared": mixed,
    }


def batches(asked: Sequence[Asked], one_by_one: bool) -> list[list[Asked]]:
    parts: list[list[Asked]] = [[]]
    for one in asked:
        used = sum(len(other.request.token_ids) for other in parts[-1])
        if parts[-1] and (one_by_one or used + len(one.request.token_ids) > BATCH):
            parts.append([])
        parts[-1].append(one)
    return parts


def seconds(scorer: Scorer, parts: Sequence[Sequence[Asked]]) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    results = [result for part in parts for result in scorer.score(part)]
    taken = time.perf_counter() - start
    return taken, np.concatenate([result.logprobs for result in results if result.logprobs is not None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo:teacher")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--response", type=int, default=128)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    lm = load_model(ModelConfig(model=options.model), torch.device("cpu"))
    if lm.context is not None and options.prompt + options.response > lm.context:
        raise SystemExit(
            f"{options.model} has a context of {lm.context} tokens: give a shorter --prompt and --response"
        )
    for kind, asked in workloads(options, lm.vocabulary).items():
        parts = batches(asked, one_by_one=kind == "turns")
        ratios, plain, worst = [], [], 0.0
        for number in range(options.rounds):
            timed = {}
            for with_cache in (number % 2 == 0, number % 2 == 1):
                scorer = Scorer(lm) if with_cache else Scorer(lm, prefix_bytes=0)
                timed[with_cache] = seconds(scorer, parts)
            ratios.append(timed[True][0] / timed[False][0])
            plain.append(timed[False][0])
            worst = max(worst, float(np.abs(timed[True][1] - timed[False][1]).max(initial=0.0)))
        line = {
            "kind": kind, "tokens": sum(len(one.request.token_ids) for one in asked),
            "without_s": round(float(np.median(plain)), 3), "ratio": round(float(np.median(ratios)), 3),
            "least": round(min(ratios), 3), "largest": round(max(ratios), 3), "nats": f"{worst:.1e}",
        }  # fmt: skip
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
