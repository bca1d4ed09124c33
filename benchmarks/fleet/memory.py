"""Peak memory of each of two learner ranks over that of one process, each less that of one that only imported torch.

    python benchmarks/fleet/memory.py [--quick]

A random Llama whose blocks hold nine tenths of its weights: loading, two updates under sampled support, and, if
not quick, a checkpoint. Prints one JSON line; exit code 1 above 0.65.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MOST = 0.65
RANKS = 2
TOKENS = 64  # of each response


def measure(quick: bool) -> dict[str, Any]:
    """Peaks in MB; `ratio` is of the larger rank."""
    with tempfile.TemporaryDirectory() as folder:
        _run("model", folder, "20" if quick else "32")
        base = _run("torch", folder)
        one = _run("rank", folder, "0", "1", str(int(quick))) - base
        ranks = [_start("rank", folder, str(rank), str(RANKS), str(int(quick))) for rank in range(RANKS)]
        several = [_peak(process) - base for process in ranks]
    found = {"one_mb": round(one), "rank_mb": [round(peak) for peak in several]}
    return {"what": "memory", "ranks": RANKS, "ratio": round(max(several) / one, 3), **found}


def _start(*arguments: str) -> subprocess.Popen[str]:
    source = str(Path(__file__).parents[2] / "src")
    path = os.pathsep.join([source, str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.Popen([sys.executable, __file__, *arguments], env=environment, stdout=subprocess.PIPE, text=True)


def _run(*arguments: str) -> float:
    return _peak(_start(*arguments))


def _peak(process: subprocess.Popen[str]) -> float:
    """MB, as the process itself says in its last line."""
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a process of the benchmark ended with {process.returncode}")
    return float(output.split()[-1])


def _model(folder: Path, layers: int) -> None:
    import transformers

    from tests.helpers import character_tokenizer

    width = 512
    config = transformers.LlamaConfig(
        vocab_size=layers * width * 8 // 9, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=8, tie_word_embeddings=False, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    blocks = sum(p.numel() for p in model.model.layers.parameters())
    assert 0.89 < blocks / sum(p.numel() for p in model.parameters()) < 0.91
    model.save_pretrained(folder / "model")
    character_tokenizer().save_pretrained(folder / "model")


def _rank(folder: Path, rank: int, count: int, quick: int) -> None:
    from limbeck.config.base import ModelConfig
    from limbeck.config.learner import LocalLearnerConfig
    from limbeck.learners.ranks import open_rank
    from limbeck.objectives import Loss, ReverseKL

    config, source = LocalLearnerConfig(micro_batch_tokens=2 * TOKENS), ModelConfig(model=str(folder / "model"))
    learner = open_rank(
        config, Loss(ReverseKL(), support="sampled"), 10, 0, source, rank, count, f"file://{folder}/store"
    )
    for _ in range(2):
        asyncio.run(learner.update(_samples()))
    if not quick:
        learner.save(folder / f"checkpoint-{count}")


def _samples() -> list[Any]:
    import numpy as np

    from limbeck.records import Scored, TokenScores
    from tests.helpers import random_rollout

    rng = np.random.default_rng(0)
    rollouts = [random_rollout(rng, n, TOKENS) for n in range(4)]
    return [Scored(one, TokenScores("teacher", 0.7, one.logprobs)) for one in rollouts]


def main(what: str, folder: str, *rest: str) -> None:
    import torch

    torch.set_num_threads(1)
    if what == "model":
        _model(Path(folder), int(*rest))
    elif what == "rank":
        _rank(Path(folder), *(int(number) for number in rest))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)
    os._exit(0)  # torch's threads of a process group may still run


if __name__ == "__main__":
    if len(sys.argv) > 2:
        main(*sys.argv[1:])
    result = measure("--quick" in sys.argv)
    print(json.dumps(result))
    sys.exit(result["ratio"] > MOST)
