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
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from limbeck.config_section import ModelSection
from limbeck.errors import ModelError
from limbeck.objectives.head import Head
from limbeck.tree import ATTENTION, Tree, attention, grow

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHIPPED = Path(__file__).parent / "demo"
PROBE_PARTS = (slice(0, 5), slice(5, 8))
PROBE_TOLERANCE = 1e-3  # nats; a missed soft cap or multiplier is off by far more
UNSUPPORTED_LAYERS = ("linear_attention", "mamba", "conv", "recurrent")

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
        longest = getattr(_text_config(self.model), "max_position_embeddings", None)
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
        layer, config = self.head_layer(), _text_config(self.model)
        multiplier = float(getattr(config, "logit_scale", None) or 1.0)
        if divisor := getattr(config, "logits_scaling", None):
            multiplier /= float(divisor)
        softcap = getattr(config, "final_logit_softcapping", None)
        head = Head(layer.weight, layer.bias, multiplier, float(softcap) if softcap else None)
        return head.narrow(self.vocabulary)


def load_model(section: ModelSection, device: torch.device) -> CausalLM:
    """Load a model and its tokenizer, and prove that its head is understood.

    Raises `ModelError` for a missing folder, tokenizer or weight, for weights that are not finite,
    and for an architecture whose logits are not `Head`'s.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # the run has its own display
    path = resolve(section.model)
    tokenizer = load_tokenizer(section.model)
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, section.dtype),
            attn_implementation=_attention(section, path),
            ignore_mismatched_sizes=True,  # told below, by name
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, SafetensorError...
        raise ModelError(f"cannot load the model {section.model!r}: {_first_line(error)}") from error
    for kind in ("missing_keys", "mismatched_keys"):
        if keys := sorted(key if isinstance(key, str) else key[0] for key in loading[kind]):
            raise ModelError(
                f"{section.model}: the checkpoint has no usable value for {len(keys)} weights ({kind}), such "
                f"as {keys[0]!r}. They would start at random: use a complete checkpoint."
            )
    lm = CausalLM(section.model, model.to(device), tokenizer, vocabulary=0)
    lm.vocabulary = lm.head_layer().weight.shape[0]
    _check_attention(lm)
    _check_finite(lm)
    prove_head(lm)
    return lm


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub name. Raises `ModelError`."""
    from transformers import AutoTokenizer

    path = resolve(name)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    except Exception as error:
        raise ModelError(
            f"cannot load a tokenizer from {name!r}: {_first_line(error)}. Save one beside the model with "
            "tokenizer.save_pretrained(folder)."
        ) from error
    if not tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys():  # made up from its class
        raise ModelError(
            f"{name!r} has no tokenizer: its vocabulary is {len(tokenizer)} control tokens and no text. Save the "
            "right one beside the model with tokenizer.save_pretrained(folder)."
        )
    return tokenizer


def resolve(name: str) -> str:
    """`demo:NAME` to the shipped folder; a path that should be a folder must be a model folder.

    Raises `ModelError` otherwise. Anything of the form `name` or `owner/name` that is not here is
    left to the hub.
    """
    if name.startswith("demo:"):
        folder = SHIPPED / name.removeprefix("demo:")
        if not (folder / "config.json").is_file():
            shipped = ", ".join(f"demo:{path.parent.name}" for path in sorted(SHIPPED.glob("*/config.json")))
            raise ModelError(f"no shipped model {name!r}. Shipped: {shipped}.")
        return str(folder)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{name!r} is not a model folder: it has no config.json.")
        return str(folder)
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"no model folder at {name!r}. Give a folder with config.json, or a hub name.")
    return name


def prove_head(lm: CausalLM) -> None:
    """Compare our head on our hidden states with the model's own logits. Raises `ModelError`."""
    count = min(8, lm.context or 8)
    tokens_BL = torch.arange(count, device=lm.device)[None] * 7919 % lm.vocabulary
    head, was_training = lm.head(), lm.model.training
    lm.model.eval()
    try:
        with torch.inference_mode():
            theirs_LV = lm.model(input_ids=tokens_BL, use_cache=False).logits[0].float()
            ours_LV = head.logits(lm.hidden(tokens_BL)[0]).float()
    except Exception as error:  # whatever the architecture's own code raises
        raise ModelError(
            f"{lm.name}: {type(lm.model).__name__} cannot be run as a body and a head: {_first_line(error)}. "
            "Supported: attention-only causal language models."
        ) from error
    lm.model.train(was_training)
    theirs_LV = theirs_LV[:, : lm.vocabulary]
    worst = (theirs_LV.log_softmax(-1) - ours_LV.log_softmax(-1)).abs().max().item()
    if not worst <= tolerance(lm):
        raise ModelError(
            f"{lm.name}: {type(lm.model).__name__} turns hidden states into logits in a way Limbeck does not "
            f"know (log-probs differ by {worst:.3g} nats; expected at most {PROBE_TOLERANCE}). Supported: a "
            "linear head with bias, multiplier and soft cap."
        )


def prove_packing(lm: CausalLM) -> None:
    """Compare sequences laid end to end with the same ones in rows of their own. Raises `ModelError`.

    Some architectures make their attention mask without position ids: packed sequences see each other.
    """
    tokens_L = torch.arange(8, device=lm.device) * 7919 % lm.vocabulary
    positions_L = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2], device=lm.device)
    was_training = lm.model.training
    lm.model.eval()
    with torch.inference_mode():
        packed_Ld = lm.hidden(tokens_L[None], positions_L[None])[0]
        alone_Ld = torch.cat([lm.hidden(tokens_L[part][None], positions_L[part][None])[0] for part in PROBE_PARTS])
        worst = distance(lm, packed_Ld, alone_Ld)
    lm.model.train(was_training)
    if not worst <= tolerance(lm):
        raise ModelError(
            f"{lm.name}: {type(lm.model).__name__} cannot tell packed sequences apart (log-probs differ by {worst:.3g} "
            f"nats from those of each alone; expected at most {PROBE_TOLERANCE}). Set learner.layout = 'padded'."
        )


def share_prompts(lm: CausalLM) -> str | None:
    """Let `lm` compute a prompt once for all its samples; None, or why this model cannot.

    Proven on a probe: two samples of one prompt and a sequence of its own, against each of them alone.
    """
    config, family = _text_config(lm.model), type(lm.model).__name__
    if config._attn_implementation == ATTENTION:
        return None
    if config._attn_implementation != "sdpa":
        return f"its attention is {config._attn_implementation!r}, not 'sdpa'"
    if kinds := sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention"}):
        return f"it has layers of {', '.join(kinds)}"
    _register_tree_attention()
    tokens_N = torch.arange(1, 11, device=lm.device) * 7919 % lm.vocabulary
    alone = [[0, 1, 2, 3, 4], [0, 1, 2, 5, 6, 7], [8, 9]]  # a stem of three with branches of two and three
    positions_N = torch.tensor([0, 1, 2, 3, 4, 3, 4, 5, 0, 1], device=lm.device)
    was_training = lm.model.training
    lm.model.eval()
    try:
        with torch.inference_mode():
            alone_Nd = torch.cat([lm.hidden(tokens_N[None, i])[0] for i in alone])
            lm.model.set_attn_implementation(ATTENTION)
            shared_Nd = lm.hidden(tokens_N[None], positions_N[None], tree=grow([(3, [2, 3]), (2, [])]).to(lm.device))[0]
            shared_Nd = torch.cat([shared_Nd[i] for i in alone])
            worst = distance(lm, shared_Nd, alone_Nd)
        why = None if worst <= tolerance(lm) else f"log-probs of {family} differ by {worst:.3g} nats on a probe"
    except Exception as error:  # whatever the architecture's own code raises
        why = f"{family} cannot: {_first_line(error)}"
    if why is not None:
        lm.model.set_attn_implementation("sdpa")
    lm.model.train(was_training)
    return why


def _register_tree_attention() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def distance(lm: CausalLM, one_Nd: Tensor, other_Nd: Tensor) -> float:
    """Largest difference of log-probs in nats; NaN where either is not finite."""
    one_NV, other_NV = (lm.head().logits(hidden_Nd).log_softmax(-1) for hidden_Nd in (one_Nd, other_Nd))
    return (one_NV - other_NV).abs().max().item()


def precision(lm: CausalLM, autocast: torch.dtype | None) -> AbstractContextManager[object]:
    """What the model computes in."""
    return nullcontext() if autocast is None else torch.autocast(lm.device.type, autocast)


def tolerance(lm: CausalLM) -> float:
    """In nats: rounding of the dtype the model computes in, far below any mistake."""
    dtype = next(lm.model.parameters()).dtype
    return PROBE_TOLERANCE * (1 if dtype in (torch.float32, torch.float64) else 100)


def _attention(section: ModelSection, path: str) -> str | None:
    """None lets transformers choose, which it gets wrong for soft-capped attention: only eager has it."""
    if section.attention != "auto":
        return section.attention
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path).get_text_config()
    return "eager" if getattr(config, "attn_logit_softcapping", None) else None


def _check_attention(lm: CausalLM) -> None:
    kinds = getattr(_text_config(lm.model), "layer_types", None) or []
    odd = sorted({kind for kind in kinds if any(name in kind for name in UNSUPPORTED_LAYERS)})
    if odd or getattr(lm.model, "_is_stateful", False):
        raise ModelError(
            f"{lm.name}: {type(lm.model).__name__} has recurrent layers ({', '.join(odd) or 'stateful'}), which "
            "cannot be packed or re-batched. Supported: attention-only causal language models."
        )


def _check_finite(lm: CausalLM) -> None:
    for name, parameter in lm.model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelError(f"{lm.name}: weight {name!r} has NaN or infinite values. Use another checkpoint.")


def _text_config(model: PreTrainedModel) -> Any:
    return model.config.get_text_config()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
