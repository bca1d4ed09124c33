"""Weights of two learner ranks against those of one, after three clipped AdamW steps in float64.

    python benchmarks/fleet/ranks.py [--quick]

A tiny model as `learner.layout = "auto"` computes it (fused forward, prompts shared among samples), ragged responses,
several micro-batches a rank. Prints one JSON line; exit code 1 above 1e-9.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from limbeck.learners.process_group import Ranks, join
from tests.cluster import steps
from tests.cluster.processes import run_ranks

MOST = 1e-9
RANKS = 2
QUICK, ALL = ("full",), ("full", "sampled", "top-k", "tied", "lora")


def measure(quick: bool) -> dict[str, Any]:
    names = QUICK if quick else ALL
    with tempfile.TemporaryDirectory() as folder:
        steps.save_models(Path(folder), ["llama", "llama-tied"])
        several = run_ranks(RANKS, _weights_of_rank, Path(folder), names)
        alone = _weights(Path(folder), Ranks(), names)
    worst = max((found[key] - value).abs().max().item() for found in several for key, value in alone.items())
    return {"what": "ranks", "ranks": RANKS, "worst": worst}


def _weights_of_rank(rank: int, count: int, init_method: str, folder: Path, names: tuple[str, ...]) -> Any:
    return _weights(folder, join(rank, count, init_method, torch.device("cpu")), names)


def _weights(folder: Path, ranks: Ranks, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    found = {name: steps.three_updates(steps.CASES[name], folder, ranks)["weights"] for name in names}
    return {f"{name}/{key}": value for name, weights in found.items() for key, value in weights.items()}


if __name__ == "__main__":
    result = measure("--quick" in sys.argv)
    print(json.dumps(result))
    sys.exit(result["worst"] > MOST)
