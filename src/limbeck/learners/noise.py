"""Training noise, switched off: the learner must see the distribution that was sampled from."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from limbeck.models.causal_lm import CausalLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def turn_off_training_noise(lm: CausalLM) -> None:
    """Make training mode compute what evaluation mode does: no dropout, no dropped layers, no noise in a router.

    Modules stay in evaluation mode for good; training mode only reaches the layers that transformers would
    checkpoint, for it checkpoints in no other.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    for layer in lm.model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            for name, value in vars(layer).items():
                if isinstance(value, float) and any(noise in name for noise in ("drop", "jitter")):
                    setattr(layer, name, 0.0)
    training = lm.model.training
    lm.model.train = partial(_train_quietly, lm.model)  # type: ignore[method-assign]
    lm.model.train(training)


def _train_quietly(model: PreTrainedModel, mode: bool = True) -> PreTrainedModel:
    from transformers.modeling_layers import GradientCheckpointingLayer

    for module in model.modules():
        module.training = mode and (module is model or isinstance(module, GradientCheckpointingLayer))
    return model
