"""The recipe's table of how the student is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from limbeck.config.base import Config, Count, Fraction, NonNegative, Positive, PositiveInt
from limbeck.config.factory import PythonPartConfig


class LoraConfig(Config):
    """Low-rank adapters by `peft` (extra `lora`)."""

    rank: PositiveInt = 16
    alpha: Positive = 32.0
    target_modules: tuple[str, ...] | str = Field(
        "all-linear",
        description="ends of module names, or a regular expression for whole ones; the output head, and embeddings "
        "that are tied to it, are refused",
    )


class LocalLearnerConfig(Config):
    """AdamW in this process."""

    kind: Literal["local"] = "local"
    lr: Positive = 1e-5
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    weight_decay: NonNegative = 0.0
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="decay to 0 at `steps`")
    warmup_steps: Count = 0
    max_grad_norm: Positive | None = Field(1.0, description="clipping; absent: none")
    micro_batch_tokens: PositiveInt = Field(
        2048, description="tokens (padding included) per forward and backward; bounds memory, not the update"
    )
    layout: Literal["auto", "tree", "padded", "packed"] = Field(
        "auto",
        description="`tree` computes a prompt once for all its samples, `auto` where the model can; `packed` lays "
        "sequences end to end, for variable-length attention kernels",
    )
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16: autocast over float32 weights")
    gradient_checkpointing: bool = False
    loss_chunk_mb: PositiveInt = Field(
        96, description="megabytes of logits of each model alive at once in the fused loss"
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
