"""Tiny random models of many families, and a character tokenizer for them, as ordinary model folders.

Random weights as transformers draws them are so small that every distribution is flat and every bias
zero: a test on such a model passes whatever the code does. Here matrices are large enough that a few
tokens have most of the mass, biases and norm weights are all different, and every family's speciality
(soft caps, multipliers, sliding windows shorter than a test's sequences) is switched on.

Shape legend: L the whole sequence, V vocabulary.
"""

from __future__ import annotations

import copy
import string
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from limbeck.config.base import ModelConfig
from limbeck.models.causal_lm import CausalLM
from limbeck.models.loading import load_model
from limbeck.records import Key, Prompt, Rollout, Sampling

ALPHABET = ("<pad>", "<eos>", "<unk>", "<user>", "<assistant>", *string.printable[:95])
VOCABULARY = len(ALPHABET)  # 100
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WINDOW = 5  # sliding window of the families that have one; test sequences are longer
CONTEXT = 64
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = {**SHAPE, "intermediate_size": 48, "num_key_value_heads": 2}  # the Llama-like


def _llama(**more: Any) -> PretrainedConfig:
    return transformers.LlamaConfig(**{**GATED, **more})


def _gpt2(**more: Any) -> PretrainedConfig:
    more = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, **more}
    return transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, **more)


def _gemma2(**more: Any) -> PretrainedConfig:
    more = {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0, "sliding_window": WINDOW, **more}
    return transformers.Gemma2Config(**GATED, head_dim=8, query_pre_attn_scalar=8, **more)


def _granite(**more: Any) -> PretrainedConfig:
    multipliers = {
        "embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2, "logits_scaling": 1.5,
    }  # fmt: skip
    return transformers.GraniteConfig(**GATED, **{**multipliers, **more})


FAMILIES: dict[str, Callable[..., PretrainedConfig]] = {
    "llama": lambda **more: _llama(**{"tie_word_embeddings": False, **more}),
    "llama-tied": lambda **more: _llama(**{"tie_word_embeddings": True, **more}),
    "qwen2": lambda **more: transformers.Qwen2Config(**GATED, **more),  # biases on q, k and v
    "qwen3": lambda **more: transformers.Qwen3Config(**{**GATED, "head_dim": 8, **more}),  # norms on q and k
    "gpt2": _gpt2,  # learned positions, LayerNorm, biases everywhere, Conv1D
    "gemma2": _gemma2,  # soft caps on attention and logits, every other layer a sliding window
    "mistral": lambda **more: transformers.MistralConfig(**GATED, **{"sliding_window": WINDOW, **more}),
    "granite": _granite,  # logits divided
    "cohere": lambda **more: transformers.CohereConfig(**GATED, **{"logit_scale": 1.7, **more}),  # multiplied
    "phi": lambda **more: transformers.PhiConfig(**SHAPE, intermediate_size=48, **more),  # bias on the head
}


def config_of(family: str, **more: Any) -> PretrainedConfig:
    """A tiny config of a family; `more` goes to it and wins over what stands above."""
    control = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    config = FAMILIES[family](**{"vocab_size": VOCABULARY, **control, **more})
    if family != "gpt2":
        config.max_position_embeddings = CONTEXT
    return config


def build(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A float32 model of random weights in evaluation mode, no two of its vectors alike."""
    model: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim < 2:
                parameter.add_(0.3 * noise)
            else:
                parameter.copy_(1.5 * noise / min(parameter.shape[-2:]) ** 0.5)
    return model.eval()


def character_tokenizer(alphabet: tuple[str, ...] = ALPHABET, **more: Any) -> PreTrainedTokenizerFast:
    """One token a character, control tokens whole, with a chat template."""
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(alphabet)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        **{"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>", **more},
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def save(folder: Path, family: str = "llama", seed: int = 0, **more: Any) -> str:
    """Write a model folder with its tokenizer and return its path; `more` goes to the config."""
    build(config_of(family, **more), seed).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return str(folder)


_SHARED = tempfile.TemporaryDirectory(prefix="limbeck-tiny-")  # removed when the interpreter ends


@cache
def folder_of(family: str) -> str:
    """The model folder of a family, written once a session. Every test shares it: copy it to change it."""
    return save(Path(_SHARED.name) / family, family)


@cache
def lm_of(family: str) -> CausalLM:
    """The loaded model of a family. Every test shares it: whoever changes something takes `fresh`."""
    return load_model(ModelConfig(model=folder_of(family)), torch.device("cpu"))


def fresh(family: str = "llama") -> CausalLM:
    """A loaded model of a family that may be changed."""
    lm = lm_of(family)
    return replace(lm, model=copy.deepcopy(lm.model), tokenizer=copy.deepcopy(lm.tokenizer))


def exact(family: str) -> CausalLM:
    """A model of a family in float64."""
    return in_float64(fresh(family))


def in_float64(lm: CausalLM) -> CausalLM:
    """Make `lm` float64 through and through: transformers' own norms round to float32 on their way."""
    lm.model.double()
    for module in lm.model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(_rms_norm, module)
        elif type(module).__name__ == "CohereLayerNorm":
            module.forward = partial(_layer_norm, module)
    return lm


def _rms_norm(module: Any, x: Tensor) -> Tensor:
    return torch.nn.functional.rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)


def _layer_norm(module: Any, x: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(x, module.weight.shape, module.weight, None, module.variance_epsilon)


def prompts(*lengths: int, seed: int = 0) -> list[Prompt]:
    """Prompts of random characters; the first three have ids "p0", "p1", "p2"."""
    rng = np.random.default_rng(seed)
    return [
        Prompt(f"p{number}", tuple(int(i) for i in rng.integers(5, VOCABULARY, length)))
        for number, length in enumerate(lengths)
    ]


def rollout(token_ids: Sequence[int], trained: Sequence[int], temperature: float = 1.0, name: str = "r") -> Rollout:
    """A response as if sampled: `trained` are 0 or 1, one a token."""
    mask = np.asarray(trained, dtype=bool)
    return Rollout(
        prompt=Prompt(name, tuple(token_ids[:1])),
        key=Key(name),
        segment=0,
        token_ids=np.asarray(token_ids, dtype=np.int64),
        trained=mask,
        logprobs=np.zeros(int(mask.sum()), dtype=np.float32),
        versions=np.zeros(int(mask.sum()), dtype=np.int64),
        sampling=Sampling(temperature, max_tokens=max(1, len(mask))),
    )


def logprobs(model: PreTrainedModel, token_ids: Sequence[int], temperature: float = 1.0, vocabulary: int = 0) -> Tensor:
    """[L - 1, V] what transformers itself says of each next token, one sequence at a time, nothing cached.

    Over the first `vocabulary` tokens where given.
    """
    with torch.no_grad():
        logits_LV = model(torch.as_tensor(token_ids)[None], use_cache=False).logits[0, :-1].double()
    return torch.log_softmax(logits_LV[:, : vocabulary or None] / temperature, dim=-1)


def logprobs_of_sampled(model: PreTrainedModel, rollout: Rollout, temperature: float, vocabulary: int = 0) -> Tensor:
    """[S] the same, of the tokens a rollout has sampled."""
    of_next_LV = logprobs(model, rollout.token_ids, temperature, vocabulary)
    of_sampled_SV = of_next_LV[torch.as_tensor(rollout.trained)[1:]]
    return of_sampled_SV.gather(1, torch.as_tensor(rollout.response_ids)[:, None])[:, 0]
