"""A rank that is killed in the middle of a backward pass ends the others, with an error or by themselves."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from limbeck.errors import LostLearnerError
from limbeck.learners import lifeline
from limbeck.learners.process_group import join
from tests.cluster import steps
from tests.cluster.processes import run_ranks

pytestmark = pytest.mark.cluster

WITHIN = 30  # seconds


def _killed_in_backward(rank: int, count: int, init_method: str, folder: Path) -> str:
    case = steps.CASES["full"]
    ranks = join(rank, count, init_method, torch.device("cpu"))
    learner, samples = steps.learner_of(case, folder, ranks), steps.samples_of(case, steps.teacher_of(case, folder))
    steps.update(learner, samples)
    if rank == 1:
        first = next(iter(learner.parameters.values()))
        first.register_post_accumulate_grad_hook(lambda _: os.kill(os.getpid(), signal.SIGKILL))
    signal.alarm(WITHIN)
    with pytest.raises(LostLearnerError, match="another rank of the learner is gone"):
        steps.update(learner, samples)
    return "raised"


def _killed_while_others_wait(rank: int, count: int, init_method: str) -> str:
    """In no collective, as where NCCL would wait for ever."""
    lifeline.GRACE = 1.0
    join(rank, count, init_method, torch.device("cpu"))
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait(WITHIN)
    return "still there"


def test_a_kill_in_backward_is_an_error_of_the_others(tmp_path: Path) -> None:
    steps.save_models(tmp_path, ["llama"])
    assert run_ranks(2, _killed_in_backward, tmp_path) == ["raised", None]


def test_ranks_that_are_stuck_end_by_themselves() -> None:
    assert run_ranks(3, _killed_while_others_wait) == [None, None, None]
