"""The `[eval]` table: when the student is evaluated, on what, and how it samples there."""

from __future__ import annotations

from typing import Annotated, Self, TypeAlias

from pydantic import Field, model_validator

from limbeck.config.base import Config
from limbeck.config.task import EvalTaskConfig
from limbeck.config.values import Count, Name, Temperature

EvalPrompts: TypeAlias = Annotated[int, Field(ge=1, le=10**6)]
Samples: TypeAlias = Annotated[int, Field(ge=1, le=2**14)]
# First parts of the names that an evaluation's own metrics have: a set called so could not be distinguished from them.
TAKEN = {
    "accuracy", "entropy", "env", "greedy", "importance", "mismatch", "pass", "prompts", "reverse_kl", "samples",
    "seconds", "source", "support", "task", "teacher", "tokens", "view",
}  # fmt: skip


class EvalSetConfig(Config):
    """One more set of prompts to evaluate on. What is absent is as in `[eval]` and `[rollout]`."""

    task: EvalTaskConfig | None = Field(None, description="where its prompts come from; absent: those of `[task]`")
    prompts: EvalPrompts | None = Field(None, description="how many; absent: `eval.prompts`")
    samples_per_prompt: Samples | None = Field(None, description="responses to each; absent: as in `[eval]`")
    greedy: bool | None = Field(None, description="accuracy of the most likely answer; absent: as in `[eval]`")
    temperature: Temperature | None = Field(None, description="of the samples; absent: `rollout.temperature`")
    max_tokens: Annotated[int, Field(ge=1, le=2**24)] | None = Field(
        None, description="longest response; absent: `rollout.max_tokens`"
    )
    score: bool = Field(True, description="false: rewards alone, the teacher is not asked")


class EvalConfig(Config):
    """Held-out accuracy and reverse KL on fresh student samples."""

    every: Count = Field(0, description="steps between evaluations; 0: only before and after")
    prompts: EvalPrompts = Field(128, description="how many held-out prompts; all, where there are fewer")
    samples_per_prompt: Samples = Field(1, description="responses to each; several give pass@k")
    greedy: bool = Field(False, description="accuracy of the most likely answer; the KL is always on samples")
    sets: dict[Name, EvalSetConfig] = Field(
        default_factory=dict, max_length=100, description="more sets, by name: metrics are `eval/NAME/...`"
    )

    def responses_of(self, name: str) -> tuple[int, int]:
        """Prompts, and samples of each, of a set."""
        one = self.sets[name]
        return one.prompts or self.prompts, one.samples_per_prompt or self.samples_per_prompt

    def asked(self, max_tokens: int) -> list[tuple[int, int]]:
        """Responses, and tokens of each at most, of every set; `max_tokens` is that of training."""
        sets = [
            (prompts * samples, one.max_tokens or max_tokens)
            for name, one in self.sets.items()
            for prompts, samples in [self.responses_of(name)]
        ]
        return [(self.prompts * self.samples_per_prompt, max_tokens), *sets]

    def temperatures(self, rollout: float) -> dict[str, float]:
        """At which the teacher is asked for scores, by the key that says so; `rollout` is that of training."""
        others = {f"eval.sets.{name}": one.temperature for name, one in self.sets.items() if one.score}
        return {"rollout": rollout, **{key: t for key, t in others.items() if t is not None}}

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        if taken := next((name for name in self.sets if name.partition("@")[0] in TAKEN), None):
            raise ValueError(f"a set is called {taken}, which is the name of a metric. Give it another name.")
        return self
