"""The recipe's table of how the student is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from limbeck.config.base import Config, Count, Fraction, NonNegative, Positive, PositiveInt
from limbeck.config.factory import PythonPartConfig


class LoraConfig(Config):
    """Low-rank adapters by `peft` (extra `lora`)."""

    rank: PositiveInt = Field(16, description="of each adapted matrix's update")
    alpha: Positive = Field(32.0, description="the update is scaled by alpha / rank")
    target_modules: tuple[str, ...] | str = Field(
        "all-linear",
        description="ends of module names, or a regular expression for whole ones; the output head, and embeddings "
        "that are tied to it, are refused",
    )


class LocalLearnerConfig(Config):
    """AdamW in this process. Dropout and other noise of training are off: the student is what was sampled from."""

    kind: Literal["local"] = "local"
    lr: Positive = Field(1e-5, description="learning rate after the warm-up")
    betas: tuple[Fraction, Fraction] = Field((0.9, 0.95), description="of AdamW")
    weight_decay: NonNegative = Field(0.0, description="of AdamW")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="`linear` and `cosine` decay to 0 at `steps`"
    )
    warmup_steps: Count = Field(0, description="steps of linear warm-up")
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
    gradient_checkpointing: bool = Field(False, description="computes activations twice to keep fewer of them")
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
