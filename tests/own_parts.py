"""A part of one's own for every seam, as a user would write them: real where the run needs real weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_model as load_model_file

from limbeck.config.engine import HFEngineConfig
from limbeck.config.factory import Build
from limbeck.config.learner import LocalLearnerConfig
from limbeck.config.objective import PythonObjectiveConfig
from limbeck.engines.hf import InProcessEngine
from limbeck.learners.local import LocalLearner
from limbeck.models.loading import load_model
from limbeck.objectives import loss_of
from limbeck.protocols import Policy
from limbeck.testing import BigramTeacher, FakeTask, PlainReverseKL, Recorder, random_bigrams

MADE: dict[str, Any] = {}  # by seam, the part that was made last


def _keep(seam: str, part: Any) -> Any:
    MADE[seam] = part
    return part


def teacher(build: Build, seed: int) -> BigramTeacher:
    made: BigramTeacher = _keep("teacher", BigramTeacher(random_bigrams(build.info.vocabulary, seed)))
    return made


def task(build: Build, prompts: int) -> FakeTask:
    made: FakeTask = _keep("task", FakeTask({f"p{n}": [5 + n, 6 + n] for n in range(prompts)}, held_out=2))
    return made


class CopyingEngine(InProcessEngine):
    """Has weights of its own, and takes the policy's whenever it is given one."""

    loaded: list[int]

    async def load(self, policy: Policy) -> None:
        await super().load(policy)
        self.loaded.append(policy.version)


def engine(build: Build, max_rows: int = 8) -> CopyingEngine:
    made: CopyingEngine = _keep(
        "engine",
        CopyingEngine(load_model(build.recipe.student, build.device), HFEngineConfig(max_rows=max_rows), shared=False),
    )
    made.loaded = []
    return made


def objective(build: Build) -> PlainReverseKL:
    made: PlainReverseKL = _keep("objective", PlainReverseKL())
    return made


class OwnLearner(LocalLearner):
    """Its student is its own, so it is the one to take the checkpoint's weights."""

    def restore(self, folder: Path) -> None:
        load_model_file(self.lm.model, folder / "model" / "model.safetensors")
        super().restore(folder)


def learner(build: Build, lr: float) -> LocalLearner:
    own = isinstance(build.recipe.objective, PythonObjectiveConfig)
    loss = loss_of(build.recipe.objective, MADE["objective"] if own else None)
    lm = load_model(build.recipe.student, build.device)
    made: LocalLearner = _keep(
        "learner", OwnLearner(lm, LocalLearnerConfig(lr=lr), loss, build.recipe.steps, build.seed)
    )
    return made


def tracker(build: Build) -> Recorder:
    made: Recorder = _keep("tracker", Recorder())
    return made


def nothing(build: Build) -> None:
    """A factory that forgets to return what it made."""
