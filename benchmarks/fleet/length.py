"""How the memory of a step grows with the length of its sequences, samples that share a prompt included.

    python -m benchmarks.fleet.length            # {"what": "length", "exponent": ..., "megabytes": {...}}

For each length, shortest first, a fresh process makes one step of a tiny student: 2 samples of one prompt (a quarter of
the length) against the hidden states of a tiny teacher. Memory is the peak of the process less what it held before the
step; the exponent is that of a least-squares line through the logarithms. Linear is 1; a mask of [length, length] comes
near 2.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

LENGTHS = (2048, 4096, 8192, 16384)
VOCABULARY, WIDTH, LAYERS = 256, 64, 2


def measure(quick: bool) -> dict[str, Any]:
    """The exponent of megabytes against length."""
    lengths = LENGTHS[::3] if quick else LENGTHS
    # Freed memory goes back at once: what is measured is what is alive, not what the allocator keeps.
    environment = os.environ | {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "benchmarks.fleet.length", "--steps", *map(str, lengths)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    megabytes = json.loads(done.stdout.splitlines()[-1])
    exponent = float(np.polyfit(np.log(lengths), np.log(megabytes), 1)[0])
    return {"what": "length", "exponent": round(exponent, 3), "megabytes": dict(zip(lengths, megabytes, strict=True))}


def one_step(length: int, samples: int, prompts: int, checkpointing: bool) -> float:
    """Megabytes that a step takes beyond what the process held before it, where no step before took more."""
    from limbeck.config.learner import LocalLearnerConfig
    from limbeck.config.objective import ReverseKLConfig
    from limbeck.learners.local import LocalLearner

    student, teacher = _model(0, length), _model(1, length)
    head = teacher.head().detach()
    section = LocalLearnerConfig(gradient_checkpointing=checkpointing, micro_batch_tokens=2 * samples * length)
    learner = LocalLearner(student, section, ReverseKLConfig(), 1, 0, {"head": head})
    asyncio.run(learner.update(_scored([_rollouts(0, 64, 2, 32)])))  # what the first step allocates for good
    scored = _scored([_rollouts(number, length, samples, length // 4) for number in range(prompts)])
    before = _resident()
    asyncio.run(learner.update(scored))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 2**20


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _model(seed: int, length: int) -> Any:
    import torch
    from transformers import LlamaConfig

    from limbeck.models.causal_lm import CausalLM
    from tests import tiny

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=length + 1, eos_token_id=1,
    )  # fmt: skip
    return CausalLM("tiny", tiny.build(config, seed), tiny.character_tokenizer(), VOCABULARY)


def _rollouts(number: int, length: int, samples: int, prompt_tokens: int) -> list[Any]:
    """Samples of one prompt, each of `length` tokens with it."""
    from limbeck.records import Key, Prompt, Rollout, Sampling

    generator = np.random.default_rng(number)
    prompt = Prompt(f"p{number}", tuple(generator.integers(5, VOCABULARY, prompt_tokens).tolist()))
    own = length - prompt_tokens
    trained = np.arange(length) >= prompt_tokens
    return [
        Rollout(
            prompt, Key(prompt.id, 0, sample), 0,
            np.array([*prompt.token_ids, *generator.integers(5, VOCABULARY, own)], dtype=np.int64),
            trained, np.full(own, -3, np.float32), np.zeros(own, np.int64), Sampling(1.0, own),
        )
        for sample in range(samples)
    ]  # fmt: skip


def _scored(families: Sequence[Sequence[Any]]) -> list[Any]:
    import torch

    from limbeck.models.states import LocalStates
    from limbeck.records import HiddenScores, Scored

    return [
        Scored(rollout, HiddenScores("t", LocalStates(torch.randn(int(rollout.trained.sum()), WIDTH)), "head"))
        for family in families
        for rollout in family
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the shortest and the longest only")
    parser.add_argument("--steps", nargs="+", type=int, metavar="LENGTH", help="megabytes of steps in this process")
    parser.add_argument("--samples", type=int, default=2, help="of each prompt (default 2)")
    parser.add_argument("--prompts", type=int, default=1, help="(default 1)")
    parser.add_argument("--checkpointing", action="store_true", help="with learner.gradient_checkpointing")
    args = parser.parse_args()
    if not args.steps:
        print(json.dumps(measure(args.quick)))
        return
    print(json.dumps([one_step(n, args.samples, args.prompts, args.checkpointing) for n in args.steps]))


if __name__ == "__main__":
    main()
