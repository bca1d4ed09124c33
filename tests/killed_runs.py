"""A run in a process that is killed with SIGKILL again and again, and started again until it comes to its end."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import limbeck

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["limbeck.api", "transformers.models.llama.modeling_llama"])


def train_killed(recipe: Any, folder: Path, rng: random.Random, most: int, within: float) -> int:
    """How often it was killed: `most` times at most, each `within` seconds of its first new metrics in `folder`."""
    kills, metrics = 0, folder / "run" / "metrics.jsonl"
    while True:
        child = context.Process(target=limbeck.train, args=(recipe,))
        before = metrics.stat().st_size if metrics.exists() else 0
        child.start()
        while child.is_alive() and (metrics.stat().st_size if metrics.exists() else 0) <= before:
            time.sleep(0.005)  # until it has got somewhere since it started
        if kills < most:
            child.join(timeout=rng.uniform(0.0, within))
            if child.is_alive():
                child.kill()
                kills += 1
        child.join()
        if child.exitcode == 0:
            return kills
        assert child.exitcode == -9
