"""A Hugging Face causal language model taken apart: body (hidden states) and head (logits).

    lm = load_model(section, torch.device("cpu"))
    hidden_BLd = lm.hidden(tokens_BL, positions_BL)
    logits_CV = lm.head().logits(hidden_BLd[0, -1:])

Models differ in what they do between the two (soft caps, multipliers). The known ones are read from
the config, and then body and head are *proven* on a probe against the model's own logits, so a model
that does something else is refused by name rather than trained wrongly.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from limbeck.errors import ModelError
from limbeck.models.head import Head
from limbeck.models.prefix_tree import Tree

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Passes: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tree | None], Tensor]  # see `CausalLM.states` and `llama`


@dataclass(eq=False)
class CausalLM:
    """A loaded model. `model` is transformers' own; adapters, where there are any, live inside it."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    vocabulary: int  # tokens the head is used over: narrowed to what student and teacher share
    passes: Passes | None = field(default=None, init=False)  # a faster way to `states`, proven for this very `model`

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def context(self) -> int | None:
        """Longest sequence the model was made for, None where its config does not say."""
        longest = getattr(text_config(self.model), "max_position_embeddings", None)
        return None if longest is None else int(longest)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """End-of-sequence tokens of the generation config, else of the tokenizer."""
        generation = getattr(self.model, "generation_config", None)
        ids = getattr(generation, "eos_token_id", None)
        ids = self.tokenizer.eos_token_id if ids is None else ids
        if ids is None:
            raise ModelError(
                f"{self.name} has no end-of-sequence token in its generation config or tokenizer, so no "
                "answer would ever end. Set eos_token_id there, or rollout.stop_ids in the recipe."
            )
        return (ids,) if isinstance(ids, int) else tuple(ids)

    def hidden(
        self, tokens_BL: Tensor, positions_BL: Tensor | None = None, tree: Tree | None = None, **kwargs: Any
    ) -> Tensor:
        """[B, L, d] final hidden states, after the last norm, before the head.

        Along `tree`, one row of tokens, where it is given: after `share_prompts` only.
        """
        body = self.model.base_model
        if tree is not None:  # a mask of four dimensions is handed on as it is, so none is made
            nothing = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=tokens_BL.device)
            kwargs = {"attention_mask": nothing, "tree": tree, **kwargs}
        output = body(input_ids=tokens_BL, position_ids=positions_BL, **{"use_cache": False, **kwargs})
        hidden_BLd: Tensor = output.last_hidden_state
        return hidden_BLd

    def states(self, tokens_BL: Tensor, positions_BL: Tensor, predict_N: Tensor, tree: Tree | None = None) -> Tensor:
        """[N, d] of `hidden` what stands at the flat places `predict_N`, by `passes` where there are any.

        Sequences laid end to end in one row, and what runs under autocast, do without.
        """
        packed = tree is None and int(positions_BL[-1, -1]) + 1 < positions_BL.shape[1]
        if self.passes is None or packed or torch.is_autocast_enabled(self.device.type):
            return self.hidden(tokens_BL, positions_BL, tree).flatten(0, 1)[predict_N]
        return self.passes(tokens_BL, positions_BL, predict_N, tree)

    def head_layer(self) -> nn.Linear:
        """The module of the output head. Raises `ModelError` where it is not a plain matrix."""
        layer = self.model.get_output_embeddings()
        if type(layer) is not nn.Linear:
            raise ModelError(
                f"{self.name}: the output head is a {type(layer).__name__}, expected a plain nn.Linear. "
                "Adapters on the head are not supported: leave it out of learner.lora.target_modules."
            )
        return layer

    def head(self) -> Head:
        """The output head over the shared vocabulary, sharing the model's parameters."""
        layer, config = self.head_layer(), text_config(self.model)
        multiplier = float(getattr(config, "logit_scale", None) or 1.0)
        if divisor := getattr(config, "logits_scaling", None):
            multiplier /= float(divisor)
        softcap = getattr(config, "final_logit_softcapping", None)
        head = Head(layer.weight, layer.bias, multiplier, float(softcap) if softcap else None)
        return head.narrow(self.vocabulary)


def precision(lm: CausalLM, autocast: torch.dtype | None) -> AbstractContextManager[object]:
    """What the model computes in."""
    return nullcontext() if autocast is None else torch.autocast(lm.device.type, autocast)


def text_config(model: PreTrainedModel) -> Any:
    return model.config.get_text_config()


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
