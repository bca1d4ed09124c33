"""A teacher that is the student itself: as it began, as it was some updates ago, or the moving average of its weights.

    past = PastSelf("teacher", learner, lag=8)      what the learner keeps, and saves in its checkpoints
    teacher = SelfTeacher("teacher", past=past)

    start      with adapters: those of the beginning, which add nothing to the base. No second copy of a model
    lagged     step n is scored with the weights of update max(0, n - 1 - lag)
    average    a_0 = w_0 and a_n = decay * a_(n-1) + (1 - decay) * w_n, in float32; step n is scored with a_(n-1)

The average is that of Polyak and Juditsky as Tarvainen and Valpola (2017, section 2) use it for teachers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from safetensors import SafetensorError, safe_open
from torch import Tensor

from limbeck.errors import RunError
from limbeck.learners.policy import LocalPolicy
from limbeck.learners.tensor_file import Spec, write_tensors
from limbeck.models.causal_lm import first_line
from limbeck.models.head import Head
from limbeck.records import Failure, HiddenScores, ScoreRequest, Scores

if TYPE_CHECKING:
    from limbeck.learners.local import LocalLearner

Heads: TypeAlias = Mapping[str, Head]  # by fingerprint


class SelfTeacher:
    """See `protocols.Teacher`. Scores with `policy` until it has a `past`."""

    def __init__(self, name: str, policy: LocalPolicy, past: PastSelf | None = None) -> None:
        self.name, self.past, self._policy = name, past, policy
        self.info = replace(policy.info, name=f"{policy.info.name}, its own past")

    @property
    def policy(self) -> LocalPolicy:
        return self._policy if self.past is None else self.past.policy

    @property
    def heads(self) -> Heads:
        """Of what it scores with now."""
        head = self.policy.head()
        return {head.fingerprint(): head}

    async def score(self, unit: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        """`HiddenScores` for each request, or a `Failure` for one that the model has no answer to."""
        answers = await self.policy.score([replace(request, support="full") for request in unit])  # more than any
        return [replace(one, scorer=self.name) if isinstance(one, HiddenScores) else one for one in answers]


class PastSelf:
    """What a learner keeps of its own past. Without `lag` and `decay` it is the beginning.

    `seen` gives heads over the student's ids, where the teacher's special tokens have other ones.
    """

    def __init__(
        self,
        name: str,
        learner: LocalLearner,
        lag: int | None = None,
        decay: float | None = None,
        seen: Callable[[Heads], Heads] = dict,
    ) -> None:
        self.name, self.learner, self.lag, self.decay, self._seen = name, learner, lag, decay, seen
        self.kept: dict[int, LocalPolicy] = {}
        self.average: dict[str, Tensor] = {}
        if decay is None:
            self.kept[learner.version] = learner.policy_at(learner.version).hold()
        else:
            self.average = {name: p.detach().float().clone() for name, p in learner.parameters.items()}
        self._take_up()

    def after_update(self) -> None:
        """The learner made one."""
        version = self.learner.version
        if self.decay is not None:
            for name, parameter in self.learner.parameters.items():
                self.average[name].mul_(self.decay).add_(parameter.detach().float(), alpha=1 - self.decay)
        elif self.lag is not None:
            self.kept[version] = self.learner.policy_at(version).hold()
            self.kept = {v: policy for v, policy in self.kept.items() if v >= version - self.lag}
        else:
            return
        self._take_up()

    def save(self, folder: Path) -> None:
        """Nothing of the beginning, which follows from the recipe."""
        tensors = self._tensors()
        if tensors:
            specs = {name: Spec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
            write_tensors(self._file(folder), specs, tensors.items(), {"version": str(self.learner.version)})

    def restore(self, folder: Path) -> None:
        """Take up what `save` wrote. Raises `RunError` where it is missing, or of something else."""
        if self.lag is None and self.decay is None:
            return
        found = self._read(self._file(folder))
        if self.decay is not None:
            self.average = found
        else:
            version = self.learner.version
            self.kept = {version: self.learner.policy_at(version).hold()}
            for one in self._earlier(version):
                own = {name: found[f"{one}/{name}"] for name in self.learner.parameters}
                self.kept[one] = self.learner.policy_of(one, own.items())
        self._take_up()

    def _take_up(self) -> None:
        """Score with what is kept now."""
        version = self.learner.version
        if self.decay is not None:
            parameters = self.learner.parameters
            values = ((name, value.to(parameters[name].dtype)) for name, value in self.average.items())
            self.policy = self.learner.policy_of(version, values)
        elif self.lag is not None:
            self.policy = self.kept[max(0, version - self.lag)]
        else:
            self.policy = next(iter(self.kept.values()))
        head = self.policy.head()
        self.heads = self._seen({head.fingerprint(): head})

    def _earlier(self, version: int) -> range:
        """The versions before the learner's own that later steps are scored with."""
        return range(max(0, version - (self.lag or 0)), version)

    def _tensors(self) -> dict[str, Tensor]:
        if self.decay is not None:
            return self.average
        versions = self._earlier(self.learner.version)
        return {f"{one}/{name}": tensor for one in versions for name, tensor in self.kept[one].trained()}

    def _read(self, path: Path) -> dict[str, Tensor]:
        """The tensors that `save` writes of this version."""
        parameters, versions = self.learner.parameters, self._earlier(self.learner.version)
        names = {name: name for name in parameters}
        if self.decay is None:
            names = {f"{one}/{name}": name for one in versions for name in parameters}
        if not names:
            return {}  # before the first update nothing is earlier
        try:
            with safe_open(path, framework="pt") as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                version = (file.metadata() or {}).get("version")
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"cannot read the weights that the teacher {self.name} scores with from {path}: {first_line(error)}. "
                "Remove the checkpoint to go on from the one before."
            ) from error
        shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
        if version != str(self.learner.version) or shapes != {
            name: tuple(parameters[own].shape) for name, own in names.items()
        }:
            raise RunError(
                f"{path} is of update {version} or of other weights than the student's of update "
                f"{self.learner.version}: files of two checkpoints are mixed, or teacher.lag was changed. Remove the "
                "checkpoint to go on from the one before, or start over with --fresh."
            )
        device = next(iter(parameters.values())).device
        return {name: tensor.to(device, copy=True) for name, tensor in found.items()}

    def _file(self, folder: Path) -> Path:
        return folder / f"past-{self.name}.safetensors"
