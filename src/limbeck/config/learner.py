"""The recipe's table of how the student is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field

from limbeck.config.base import Config
from limbeck.config.factory import PythonPartConfig
from limbeck.config.values import Count, NonNegative, Positive, PositiveInt, check_pattern

Beta: TypeAlias = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
LearningRate: TypeAlias = Annotated[float, Field(ge=1e-30, le=100, allow_inf_nan=False)]


def _are_targets(targets: tuple[str, ...] | str) -> tuple[str, ...] | str:
    """Raises `ValueError` for a list that is empty or too long, and for text that is no regular expression."""
    if isinstance(targets, str):
        return check_pattern(targets)
    if not 1 <= len(targets) <= 1000:
        raise ValueError(f"{len(targets)} names are given, expected 1 to 1000")
    return targets


class LoraConfig(Config):
    """Low-rank adapters by `peft` (extra `lora`)."""

    rank: Annotated[int, Field(ge=1, le=4096)] = Field(16, description="of each adapted matrix's update")
    alpha: Positive = Field(32.0, description="the update is scaled by alpha / rank")
    target_modules: Annotated[tuple[str, ...] | str, AfterValidator(_are_targets)] = Field(
        "all-linear",
        description="ends of module names, or a regular expression for whole ones; the output head, and embeddings "
        "that are tied to it, are refused",
    )


class LocalLearnerConfig(Config):
    """AdamW in this process. Dropout and other noise of training are off: the student is what was sampled from."""

    kind: Literal["local"] = "local"
    lr: LearningRate = Field(1e-5, description="learning rate after the warm-up")
    betas: tuple[Beta, Beta] = Field((0.9, 0.95), description="of AdamW")
    weight_decay: Annotated[NonNegative, Field(le=100)] = Field(0.0, description="of AdamW")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="`linear` and `cosine` decay to 0 at `steps`"
    )
    warmup_steps: Count = Field(0, description="steps of linear warm-up")
    max_grad_norm: NonNegative = Field(1.0, description="clipping; 0: none")
    micro_batch_tokens: PositiveInt = Field(
        2048, description="tokens (padding included) per forward and backward; bounds memory, not the update"
    )
    layout: Literal["auto", "tree", "padded", "packed"] = Field(
        "auto",
        description="`tree` computes a prompt once for all its samples, `auto` where the model can; `packed` lays "
        "sequences end to end",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="what float32 weights compute in; norms, softmax and the loss stay in float32"
    )
    gradient_checkpointing: bool = Field(False, description="computes activations twice to keep fewer of them")
    loss_chunk_mb: Annotated[int, Field(ge=1, le=2**20)] = Field(
        96, description="megabytes of logits of each model alive at once in the fused loss"
    )
    cpu_offload: bool = Field(
        False,
        description="several ranks (`cluster.learners`) keep weights, gradients and optimizer in the memory of the CPU",
    )
    lora: LoraConfig | None = None


class PythonLearnerConfig(PythonPartConfig):
    """A learner of your own: the factory returns a `protocols.Learner`."""


LearnerConfig: TypeAlias = Annotated[LocalLearnerConfig | PythonLearnerConfig, Field(discriminator="kind")]


def complete_learner(given: Any) -> Any:
    """Kind `local` for a learner table that names none."""
    learner = given.get("learner") if isinstance(given, Mapping) else None
    if isinstance(learner, Mapping) and "kind" not in learner:
        return {**given, "learner": {"kind": "local", **learner}}
    return given
