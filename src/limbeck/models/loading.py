"""Load a Hugging Face causal language model and its tokenizer, and refuse what Limbeck cannot train rightly.

lm = load_model(section, torch.device("cpu"))
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from limbeck.config.base import ModelConfig
from limbeck.errors import ModelError
from limbeck.models.causal_lm import CausalLM, first_line, frequencies_change_at, text_config
from limbeck.models.equivalence import prove_head
from limbeck.models.text import highest_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("limbeck")

SHIPPED = Path(__file__).parent.parent / "demo"
ADAPTER = "adapter_config.json"
UNSUPPORTED_LAYERS = ("linear_attention", "mamba", "conv", "recurrent")


def load_model(section: ModelConfig, device: torch.device) -> CausalLM:
    """Load a model and its tokenizer, and prove that its head is understood.

    Raises `ModelError` for a missing folder, tokenizer or weight, for weights that are not finite,
    and for an architecture whose logits are not `Head`'s.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # the run has its own display
    path = resolve(section.model)
    if (Path(path) / ADAPTER).is_file():  # transformers would put its layers into the model
        raise _adapter_in(section.model)
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
        raise ModelError(f"cannot load the model {section.model!r}: {first_line(error)}") from error
    for kind in ("missing_keys", "mismatched_keys"):
        if keys := sorted(key if isinstance(key, str) else key[0] for key in loading[kind]):
            raise ModelError(
                f"{section.model}: the checkpoint has no usable value for {len(keys)} weights ({kind}), such "
                f"as {keys[0]!r}. They would start at random: use a complete checkpoint."
            )
    if getattr(model, "_hf_peft_config_loaded", False):  # a hub repository has no folder to look into before
        raise _adapter_in(section.model)
    lm = CausalLM(section.model, model.to(device), tokenizer, vocabulary=0)
    lm.vocabulary = _vocabulary(lm)
    if (limit := frequencies_change_at(text_config(model))) is not None and limit == lm.context:
        logger.info(
            "%s: sequences of at most %d tokens: above that the rotary frequencies follow the longest sequence of a "
            "batch, so that a response would depend on its neighbours", lm.name, limit,
        )  # fmt: skip
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
            f"cannot load a tokenizer from {name!r}: {first_line(error)}. Save one beside the model with "
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
            if (folder / ADAPTER).is_file():
                raise _adapter_in(name)
            raise ModelError(f"{name!r} is not a model folder: it has no config.json.")
        return str(folder)
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"no model folder at {name!r}. Give a folder with config.json, or a hub name.")
    return name


def _adapter_in(name: str) -> ModelError:
    return ModelError(
        f"{name!r} holds an adapter ({ADAPTER}), expected a whole model. Merge it into its model with "
        f"peft's merge_and_unload() and save the result, or remove {ADAPTER} to use a model beside it as it is."
    )


def _vocabulary(lm: CausalLM) -> int:
    """Rows of the head up to the tokenizer's largest id: what is above has no token and must not be sampled."""
    rows, needed = lm.head_rows, highest_id(lm.tokenizer) + 1
    if rows < needed:
        raise ModelError(
            f"{lm.name}: its tokenizer has ids up to {needed - 1}, but its output head only {rows} rows. Resize it "
            "with model.resize_token_embeddings(len(tokenizer)), or use the tokenizer that the model was trained with."
        )
    if rows > needed:
        logger.info("%s: %d of the %d rows of its head have no token and are left out", lm.name, rows - needed, rows)
    return needed


def _attention(section: ModelConfig, path: str) -> str | None:
    """None lets transformers choose, which it gets wrong for soft-capped attention: only eager has it."""
    if section.attention != "auto":
        return section.attention
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path).get_text_config()
    return "eager" if getattr(config, "attn_logit_softcapping", None) else None


def _check_attention(lm: CausalLM) -> None:
    kinds = getattr(text_config(lm.model), "layer_types", None) or []
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
