"""Load a Hugging Face causal language model and its tokenizer, and refuse what Limbeck cannot train rightly.

lm = load_model(section, torch.device("cpu"))
"""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from limbeck.config.base import ModelConfig
from limbeck.errors import LimbeckError, ModelError
from limbeck.files.digests import check_model_folder
from limbeck.formatting import shown
from limbeck.models.causal_lm import CausalLM, context_limit, first_line, text_config
from limbeck.models.chat import prove_template
from limbeck.models.complete import check_loading, check_stop_ids
from limbeck.models.folder import CONFIG, TOKENIZER, bounded, check_files, read_json
from limbeck.models.hub import refuse_what_is_nowhere
from limbeck.models.proofs import SUPPORTED, prove_model
from limbeck.models.spread import devices_for, spread
from limbeck.models.text import highest_id

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

logger = logging.getLogger("limbeck")

SHIPPED = Path(__file__).parent.parent / "demo"
ADAPTER = "adapter_config.json"
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
ALIGNMENT = 64  # bytes, of every tensor that torch makes on a CPU
DRAFTER = "drafts tokens for another model, whose keys and values it reads"
NOT_BY_ITSELF = {  # model types that do not turn tokens alone into the distribution of the next
    "blt": "reads bytes in patches that a second model bounds",
    "gemma4_assistant": DRAFTER,
    "gemma4_unified_assistant": DRAFTER,
}
UNSUPPORTED_LAYERS = ("linear_attention", "mamba", "conv", "recurrent")


def load_model(section: ModelConfig, device: torch.device, devices: int = 1) -> CausalLM:
    """Load a model and its tokenizer, and prove that its rows are causal and apart, and that its head is understood.

    Its layers lie on as many `devices`, of which `device` is the first.

    Raises `ModelError` for a missing folder, tokenizer or weight, for an adapter in the folder, for weights that are
    not finite, for recurrent layers, for rows that see what they must not, and for logits that are not `Head`'s.
    Raises `RunError` for a folder in a checkpoint or a finished run that is not as it was written.
    """
    lm = read_model(section, getattr(torch, section.dtype))
    spread(lm, devices_for(section.model, device, devices))
    _align(lm)
    prove_model(lm)
    return lm


def _align(lm: CausalLM) -> None:
    """Put weights that are mapped from a file, wherever its header happens to end, where torch would put them.

    Products with few rows round differently elsewhere: a process that has the same weights from another file, or from
    another process, would not sample and score to the same bit.
    """
    for parameter in lm.model.parameters():
        if parameter.device.type == "cpu" and parameter.data_ptr() % ALIGNMENT:
            parameter.data = parameter.data.clone()


def read_model(section: ModelConfig, dtype: torch.dtype) -> CausalLM:
    """A model and its tokenizer as their files have them; nothing is run yet. Raises what `load_model` does.

    Weights that the files have in `dtype` are mapped from there: they take memory where they are read or changed.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # the run has its own display
    path = resolve(section.model)
    check_model_folder(Path(path))
    if (Path(path) / ADAPTER).is_file():  # transformers would put its layers into the model
        raise _adapter_in(section.model)
    if Path(path).is_dir():
        check_files(Path(path))
    config = read_config(section.model, path)
    tokenizer = load_tokenizer(section.model)
    try:
        with bounded(section.model, Path(path)):
            model, loading = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=dtype,
                attn_implementation=_attention(section, config),
                ignore_mismatched_sizes=True,  # reported below, by name
                output_loading_info=True,
                trust_remote_code=False,
            )
    except LimbeckError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, SafetensorError...
        raise _not_loaded(f"cannot load the model {section.model!r}", error) from error
    check_loading(section.model, model, loading)
    if getattr(model, "_hf_peft_config_loaded", False):  # a hub repository has no folder to look into before
        raise _adapter_in(section.model)
    lm = CausalLM(section.model, model, tokenizer, vocabulary=0)
    lm.vocabulary = _vocabulary(lm)
    if (limit := context_limit(text_config(model))) is not None and limit.tokens == lm.context:
        logger.info("%s: sequences of at most %d tokens: above that %s", lm.name, limit.tokens, limit.above)
    check_stop_ids(lm)
    _check_attention(lm)
    return lm


def load_outline(section: ModelConfig) -> CausalLM:
    """A model and its tokenizer without weights, on the meta device: for whoever has to know it and not to run it.

    Nothing is proven; whoever loads the weights does that. Raises `ModelError` as `load_model` does for a folder.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    path = resolve(section.model)
    check_model_folder(Path(path))
    if Path(path).is_dir():
        check_files(Path(path))
    config = read_config(section.model, path)
    tokenizer = load_tokenizer(section.model)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, section.dtype))
    except Exception as error:  # the architecture's own
        raise _not_loaded(f"cannot lay out the model {section.model!r}", error) from error
    with suppress(OSError):  # many have none
        model.generation_config = GenerationConfig.from_pretrained(path)
    lm = CausalLM(section.model, model, tokenizer, vocabulary=0)
    lm.vocabulary = _vocabulary(lm)
    check_stop_ids(lm)
    return lm


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub name, with a chat template that ends. Raises `ModelError`."""
    from transformers import AutoTokenizer

    path = resolve(name)
    if (Path(path) / TOKENIZER).exists():
        read_json(Path(path) / TOKENIZER)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        text = tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys()
        tokenizer.decode(tokenizer("A word, 12.")["input_ids"])
    except BaseException as error:
        if not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):  # Rust's, of a damaged file
            raise
        refuse_what_is_nowhere(name, path, error)
        for file in ("tokenizer.json", "special_tokens_map.json"):  # named where they are no tables at all
            if (Path(path) / file).is_file():
                read_json(Path(path) / file)
        raise _not_loaded(
            f"cannot load a tokenizer from {name!r}",
            error,
            "Save one beside the model with tokenizer.save_pretrained(folder).",
        ) from error
    if not text:  # made up from its class
        raise ModelError(
            f"{name!r} has no tokenizer: its vocabulary is {len(tokenizer)} control tokens and no text. Save the "
            "right one beside the model with tokenizer.save_pretrained(folder)."
        )
    prove_template(tokenizer)
    return tokenizer


def _not_loaded(what: str, error: BaseException, remedy: str = "") -> ModelError:
    """`trust_remote_code` is never given, so a model with code of its own is one that cannot be loaded."""
    if "trust_remote_code" in str(error):
        return ModelError(
            f"{what}: it needs Python code of its own (auto_map in its {CONFIG} or {TOKENIZER}), which Limbeck never "
            "runs. Take a version of it for an architecture that transformers has, or a server that holds it."
        )
    return ModelError(f"{what}: {first_line(error)}. {remedy}".rstrip())


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
    try:
        folder = Path(name).expanduser()
        is_folder, exists = folder.is_dir(), folder.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, NUL, the home of nobody
        raise ModelError(f"no model folder can be at {shown(name)}: {error}. Give a folder, or a hub name.") from None
    if is_folder:
        if not (folder / "config.json").is_file():
            if (folder / ADAPTER).is_file():
                raise _adapter_in(name)
            raise ModelError(f"{name!r} is not a model folder: it has no config.json.")
        return str(folder)
    if exists or name.startswith((".", "/", "~")) or not HUB_NAME.fullmatch(name):
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


def read_config(name: str, path: str) -> PretrainedConfig:
    """The config.json alone, so that nothing else is blamed for it. Raises `ModelError`."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # OSError, ValueError, KeyError, the config class's own
        refuse_what_is_nowhere(name, path, error)
        remedy = "Take the config.json that came with the model."
        raise _not_loaded(f"cannot read the config.json of {name!r}", error, remedy) from error
    if why := NOT_BY_ITSELF.get(config.model_type):
        raise ModelError(f"{name}: a {config.model_type!r} model {why}. {SUPPORTED}")
    return config


def _attention(section: ModelConfig, config: PretrainedConfig) -> str | None:
    """None lets transformers choose, which it gets wrong for soft-capped attention: only eager has it."""
    if section.attention != "auto":
        return section.attention
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None


def _check_attention(lm: CausalLM) -> None:
    family = type(lm.model).__name__
    kinds = getattr(text_config(lm.model), "layer_types", None) or []
    odd = sorted({kind for kind in kinds if any(name in kind for name in UNSUPPORTED_LAYERS)})
    if odd:
        raise ModelError(
            f"{lm.name}: {family} has recurrent layers ({', '.join(odd)}), whose state cannot be packed or re-batched. "
            f"{SUPPORTED}"
        )
    if getattr(lm.model, "_is_stateful", False):
        raise ModelError(
            f"{lm.name}: {family} is stateful: it keeps more of what precedes a token than keys and values, which "
            f"cannot be packed or re-batched. {SUPPORTED}"
        )
