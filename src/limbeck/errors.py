"""What can go wrong, as a tree. Every message names the value, the expectation and the remedy.

    LimbeckError
    ├── RecipeError       (ValueError)   a recipe or an override is wrong
    ├── DataError         (ValueError)   a data set, a prompt or a grader is wrong
    ├── ModelError        (ValueError)   a model folder, a tokenizer or an output head is wrong
    ├── ContractError                    the teacher cannot be proven to answer what was asked
    ├── StalePolicyError                 weights of a version that an update has replaced
    ├── EngineError                      sampling failed and retrying did not help
    ├── TeacherError                     scoring failed and retrying did not help
    ├── NonFiniteError                   a loss or a gradient is NaN or infinite; nothing was updated
    ├── RunError                         a run folder or a checkpoint cannot be written or read
    └── LostWorkerError                  a process of the fleet died, and so did those that took its place
        └── LostLearnerError             one that holds part of the student: the run goes on from its last checkpoint

`LimbeckError` is what a caller catches; the command line prints it as one message and exits 1.
Anything else that escapes is a bug of Limbeck's.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LIMBECK = str(Path(__file__).parent)


class LimbeckError(Exception):
    """Base of everything Limbeck raises on purpose."""


class RecipeError(LimbeckError, ValueError):
    """A recipe or a command-line override is wrong."""


class DataError(LimbeckError, ValueError):
    """A data set, a prompt or a grader is wrong."""


class ModelError(LimbeckError, ValueError):
    """A model folder, its tokenizer or its output head is wrong or not supported."""


class ContractError(LimbeckError):
    """The teacher cannot be proven to answer what was asked, so the run does not start.

    `results` (`records.ProbeResult`) are the probes up to and including the one that failed.
    """

    def __init__(self, message: str, results: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.results = tuple(results)


class StalePolicyError(LimbeckError):
    """A policy was read after the update that replaced its weights. Publish again, or keep `policy.hold()`."""


class EngineError(LimbeckError):
    """Sampling failed."""


class TeacherError(LimbeckError):
    """Scoring failed."""


class NonFiniteError(LimbeckError):
    """A loss or a gradient is NaN or infinite. The weights are those before the step.

    `samples` are the offending ones (`records.Scored`), or all of the step where no single one is to blame.
    """

    def __init__(self, message: str, samples: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.samples = samples


class RunError(LimbeckError):
    """A run folder or a checkpoint cannot be written, read or resumed."""


class LostWorkerError(LimbeckError):
    """A process of the fleet died, and those that took its place died too."""


class LostLearnerError(LostWorkerError):
    """A process that holds part of the student died. Its weights are those of the last checkpoint."""


def place_of(error: BaseException) -> str:
    """The innermost line that is neither a package's nor Limbeck's: `my_parts.py, line 12, in score`."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and not f.filename.startswith(LIMBECK)]
    frame = (own or frames)[-1]
    return f"{frame.filename}, line {frame.lineno}, in {frame.name}"
