"""Several plain processes of one learner, and what each of them returned."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

SECONDS = 240.0  # none takes so long; a test that hangs says so


def run_ranks(count: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """`function(rank, count, init_method, *args)` in so many processes: what each returned, None of a killed one."""
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_main, args=(folder, rank, count, function, args), daemon=True)
            for rank in range(count)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(SECONDS)
        hung = [process for process in processes if process.is_alive()]
        for process in hung:
            process.kill()
        errors = [path.read_text() for path in sorted(Path(folder).glob("*.error"))]
        assert not errors, errors[0]
        assert not hung, f"{len(hung)} of {count} ranks did not end"
        paths = [Path(folder) / f"{rank}.pt" for rank in range(count)]
        return [torch.load(path, weights_only=False) if path.exists() else None for path in paths]


def _main(folder: str, rank: int, count: int, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    try:
        found = function(rank, count, f"file://{folder}/store", *args)
        torch.save(found, f"{folder}/{rank}.part")
        os.replace(f"{folder}/{rank}.part", f"{folder}/{rank}.pt")
    except BaseException:
        Path(folder, f"{rank}.error").write_text(f"rank {rank}: {traceback.format_exc()}")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
