"""A Hugging Face causal language model taken apart: body (hidden states) and head (logits).

    lm = load_model(section, torch.device("cpu"))
    hidden_BLd = lm.hidden(tokens_BL, positions_BL)
    logits_CV = lm.head().logits(hidden_BLd[0, -1:])

Models differ in what they do between the two (soft caps, multipliers). The known ones are read from
the config, and then body and head are *proven* on a probe against the model's own logits, so a model
that does something else is refused by name rather than trained wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from limbeck.errors import ModelError
from limbeck.models.folder import BAKED_TEMPERATURE
from limbeck.models.head import Head
from limbeck.models.prefix_tree import ATTENTION, Tree
from limbeck.records import ModelInfo

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Passes: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tree | None], Tensor]  # see `CausalLM.states` and `llama`


@dataclass(eq=False)
class CausalLM:
    """A loaded model. `model` is transformers' own; adapters, where there are any, live inside it."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    vocabulary: int  # rows of the head that are used: up to the tokenizer's largest id, see `shared_vocabulary`
    is_spread: bool = field(default=False, init=False)  # over several devices, see `spread`
    passes: Passes | None = field(default=None, init=False)  # a faster way to `states`, proven for this very `model`
    run_on: torch.device | None = field(default=None, init=False)  # where its parameters are gathered, if sharded
    run_in: torch.dtype | None = field(default=None, init=False)  # and in which dtype
    passes_under: torch.dtype | None = field(default=None, init=False)  # of autocast, under which it was proven

    @property
    def device(self) -> torch.device:
        if self.run_on is not None:
            return self.run_on
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def context(self) -> int | None:
        """Longest sequence the model is run on, None where its config does not say.

        Less than the model was made for where more tokens would change what is before or beside them.
        """
        config = text_config(self.model)
        longest, limit = self._number(config, "max_position_embeddings"), context_limit(config)
        if longest is not None and longest < -1:
            raise ModelError(
                f"{self.name}: max_position_embeddings = {longest:g} in its config.json, expected above 0."
            )
        lengths = [longest or 0, limit.tokens if limit else 0]  # XLNet's is -1
        return min((int(length) for length in lengths if length > 0), default=None)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """End-of-sequence tokens of the generation config and of the tokenizer, each once; empty where neither has one.

        Only those that can be sampled: see `stop_ids_note` for the others, and `stop_ids_of` for those of a recipe.
        """
        named = (*self._generation_stop_ids, *_as_ids(self.tokenizer.eos_token_id))
        return tuple(dict.fromkeys(id_ for id_ in named if 0 <= id_ < self.vocabulary))

    @property
    def stop_ids_note(self) -> str | None:
        """What a user should know about where responses end: None where generation config and tokenizer agree."""
        generation, tokenizer = self._generation_stop_ids, _as_ids(self.tokenizer.eos_token_id)
        notes = []
        if generation and not set(tokenizer) <= set(generation):
            notes.append(
                f"the generation config ends at {self._named(generation)}, the tokenizer at {self._named(tokenizer)}; "
                "responses stop at either"
            )
        if lost := [id_ for id_ in (*generation, *tokenizer) if not 0 <= id_ < self.vocabulary]:
            notes.append(
                f"the end-of-sequence tokens {lost} are outside the vocabulary of {self.vocabulary} and never sampled"
            )
        return f"{self.name}: {'; '.join(notes)}" if notes else None

    @property
    def _generation_stop_ids(self) -> tuple[int, ...]:
        return _as_ids(getattr(getattr(self.model, "generation_config", None), "eos_token_id", None))

    def _named(self, ids: Sequence[int]) -> str:
        return " or ".join(f"{self.tokenizer.convert_ids_to_tokens(id_)!r} ({id_})" for id_ in ids)

    @property
    def natural_temperature(self) -> float:
        """The temperature at which the model's own logits are distributed: 1, or that of a `limbeck bake`.

        Raises `ModelError` for a value that is no temperature.
        """
        found = getattr(self.model.config, BAKED_TEMPERATURE, 1.0)
        if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < math.inf:
            raise ModelError(
                f"{self.name}: {BAKED_TEMPERATURE} = {found!r} in its config.json, expected a finite number above 0, "
                "as `limbeck bake` writes it. Bake the model again."
            )
        return float(found)

    @property
    def body(self) -> nn.Module:
        """The model without its head."""
        body: nn.Module = self.model.base_model
        if body is self.model:  # the class does not say under which name it is (Llama 4): nearly always this one
            body = getattr(self.model, "model", body)
        return body

    def hidden(
        self, tokens_BL: Tensor, positions_BL: Tensor | None = None, tree: Tree | None = None, **kwargs: Any
    ) -> Tensor:
        """[B, L, d] final hidden states, after the last norm, before the head.

        Along `tree`, one row of tokens, where it is given: after `share_prompts` only. Without it, sequences end to
        end are told apart by their positions, if the model does so.
        """
        body, understood = self.body, text_config(self.model)._attn_implementation == ATTENTION
        if tree is not None and (understood or not tree.is_flat):
            # A mask of four dimensions is handed on as it is, so none is made.
            nothing = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=tokens_BL.device)
            kwargs = {"attention_mask": nothing, "tree": tree, **kwargs}
        output = body(input_ids=tokens_BL, position_ids=positions_BL, **{"use_cache": False, **kwargs})
        hidden_BLd: Tensor = output.last_hidden_state
        return hidden_BLd

    def states(self, tokens_BL: Tensor, positions_BL: Tensor, predict_N: Tensor, tree: Tree | None = None) -> Tensor:
        """[N, d] the rows of `hidden` at the flat places `predict_N`, by `passes` where there are any.

        Under another autocast than they were proven for it does without.
        """
        if self.passes is None or autocast_dtype(self.device) != self.passes_under:
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

    @property
    def head_rows(self) -> int:
        """Rows of the head as it is stored, the padding above `vocabulary` included."""
        return self.head_layer().weight.shape[0]

    def info(self) -> ModelInfo:
        """The facts, for whoever does not need the weights."""
        return ModelInfo(
            self.name, self.vocabulary, self.context, self.stop_ids, dtype_of(self), self.natural_temperature
        )

    def head(self) -> Head:
        """The output head over the shared vocabulary, sharing the model's parameters."""
        layer, config = self.head_layer(), text_config(self.model)
        multiplier = self._number(config, "logit_scale") or 1.0
        if scaling := self._number(config, "logits_scaling"):
            multiplier *= scaling if config.model_type == "hyperclovax" else 1 / scaling
        softcap = self._number(config, "final_logit_softcapping")
        return Head(layer.weight, layer.bias, multiplier, softcap or None).narrow(self.vocabulary)

    def _number(self, config: Any, key: str) -> float | None:
        """A number of the config that its class does not check; None where it is absent. Raises `ModelError`."""
        value = getattr(config, key, None)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
            raise ModelError(
                f"{self.name}: {key} = {value!r} in its config.json, expected a finite number. Take the "
                "config.json that came with the model."
            )
        return float(value)


def dtype_of(lm: CausalLM) -> str:
    """How the weights are held, as recipes name it."""
    return str(next(lm.model.parameters()).dtype).removeprefix("torch.")


def precision(lm: CausalLM, autocast: torch.dtype | None) -> AbstractContextManager[object]:
    """What the model computes in."""
    return nullcontext() if autocast is None else torch.autocast(lm.device.type, autocast)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What is computed in here and now, where autocast is on."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def shared_vocabulary(lms: Sequence[CausalLM]) -> int:
    """The rows that models of one tokenizer are sampled and compared over. Changes nothing."""
    return min(lm.vocabulary for lm in lms)


def stop_ids_of(lm: CausalLM, extra: Sequence[int] = ()) -> tuple[int, ...]:
    """The stop tokens of a model and those of a recipe (`rollout.stop_ids`), each once.

    Raises `ModelError` where there is none, and for an id of the recipe that cannot be sampled.
    """
    if outside := [id_ for id_ in extra if not 0 <= id_ < lm.vocabulary]:
        raise ModelError(
            f"rollout.stop_ids has {outside}, expected ids from 0 to {lm.vocabulary - 1} of {lm.name}. "
            "Take them from its tokenizer.json."
        )
    found = tuple(dict.fromkeys((*lm.stop_ids, *extra)))
    if not found:
        raise ModelError(
            f"{lm.name} has no end-of-sequence token in its generation config or tokenizer, so no "
            "response would ever end. Set eos_token_id there, or rollout.stop_ids in the recipe."
        )
    return found


def turn_off_training_noise(lm: CausalLM) -> None:
    """Make training mode compute what evaluation mode does: no dropout, no dropped layers, no noise in a router.

    On-policy, the learner must see the distribution that was sampled from. Modules stay in evaluation mode for good.
    Layers that transformers checkpoints are in training mode until they are run, for it checkpoints in no other.
    """
    training = lm.model.training
    lm.model.train = partial(_train_quietly, lm.model)
    lm.model.train(training)


def _train_quietly(model: PreTrainedModel, mode: bool = True) -> PreTrainedModel:
    from transformers.modeling_layers import GradientCheckpointingLayer

    for module in model.modules():
        checkpointed = isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing
        module.training = mode and (module is model or checkpointed)
        if checkpointed:
            checkpoint = module._gradient_checkpointing_func
            if not (isinstance(checkpoint, partial) and checkpoint.func is _checkpoint_quietly):
                module._gradient_checkpointing_func = partial(_checkpoint_quietly, module, checkpoint)
    return model


def _checkpoint_quietly(
    layer: nn.Module, checkpoint: Callable[..., Any], forward: Callable[..., Any], *args: Any
) -> Any:
    """`checkpoint(forward, *args)` with the layer in evaluation mode while it runs."""
    return checkpoint(partial(_run_quietly, layer, forward), *args)


def _run_quietly(layer: nn.Module, forward: Callable[..., Any], *args: Any) -> Any:
    mode, layer.training = layer.training, False
    try:
        return forward(*args)
    finally:
        layer.training = mode


@dataclass(frozen=True)
class ContextLimit:
    """The most tokens of a sequence whose states depend on nothing but what precedes them, and what happens above."""

    tokens: int
    above: str


def context_limit(config: Any) -> ContextLimit | None:
    """What a config says of such a limit; None without one. (What it does not say, the proofs of `loading` look for.)

    "longrope" (the Phi-3 family) has one set of rotary frequencies up to this length and another above it, chosen by
    the longest sequence of a batch; "dynamic" changes above `max_position_embeddings` alone. Doge attends to the best
    tokens of all, also of those that follow, once there are more than it keeps.
    """
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, Mapping)]  # one for each kind of layer
    tokens = [
        found.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        for found in nested or [parameters]
        if found.get("rope_type", found.get("type")) == "longrope"
    ]
    limits = [
        ContextLimit(int(count), "the rotary frequencies of all sequences of a batch follow the longest")
        for count in tokens
        if count
    ]
    if keep := getattr(config, "keep_window_size", None):
        limits.append(ContextLimit(int(keep), "which tokens are attended to depends on those that follow"))
    return min(limits, key=lambda limit: limit.tokens, default=None)


def _as_ids(ids: int | Sequence[int] | None) -> tuple[int, ...]:
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else tuple(ids)


def text_config(model: PreTrainedModel) -> Any:
    return model.config.get_text_config()


def first_line(error: BaseException) -> str:
    """The first line of an error, and what that line announces with a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = next((n for n, line in enumerate(lines) if not line.endswith(":")), 0)
    return (" ".join(lines[: first + 1]) or type(error).__name__).rstrip(".")
