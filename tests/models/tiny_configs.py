"""A tiny config of every causal language model that the installed transformers knows.

A config class is asked for its defaults, and what sets a size is made small by the name of the field. Of the layers of
a default model one of each kind is kept, so that a pattern of sliding and full attention, of dense and routed layers,
is there in two to four layers. What a family needs besides is in `SPECIAL`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests import tiny

CONTEXT = 64
WINDOW = 20  # longer than a ten-token probe and shorter than the context
SMALL: dict[str, Any] = {
    # widths
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "embed_dim": 32, "emb_dim": 32, "embedding_dim": 32,
    "embedding_size": 32, "word_embed_proj_dim": 32, "input_embedding_size": 32, "output_embedding_size": 32,
    "intermediate_size": 48, "ffn_dim": 48, "n_inner": 48, "d_inner": 48, "dff": 48, "dim_ff": 48,
    "ffn_hidden_size": 48, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24, "shared_experts_intermediate_size": 24, "shared_intermediate_size": 24,
    "intermediate_size_mlp": 48, "expert_ffn_hidden_size": 24, "dense_intermediate_size": 48, "feed_forward_size": 48,
    "moe_shared_expert_intermediate_size": 24, "block_ff_dim": 48, "router_hidden_size": 16,
    # heads
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "attention_heads": 4,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4, "num_key_value_heads": 2, "num_kv_heads": 2, "head_dim": 8, "dim_head": 8,
    "d_head": 8, "attention_head_dim": 8, "rotary_dim": 4, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2,
    "swa_head_dim": 8, "kv_channels": 8, "query_pre_attn_scalar": 8, "attention_head_size": 8,
    "v_head_dim": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "qk_head_dim": 16, "kv_lora_rank": 16,
    "q_lora_rank": 16, "index_n_heads": 2, "index_head_dim": 8, "index_topk": 8, "index_block_size": 4,
    "index_topk_blocks": 2, "o_groups": 2, "o_lora_rank": 8,
    # layers
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "encoder_layers": 2, "decoder_layers": 2,
    "num_encoder_layers": 2, "num_decoder_layers": 2, "num_blocks": 2, "depth": 2,
    "first_k_dense_replace": 1, "num_dense_layers": 1, "moe_layer_start_index": 1, "moe_layer_end_index": 1,
    "max_window_layers": 1,
    # experts
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_topk": 2, "moe_k": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "num_shared_experts": 1,
    "moe_num_shared_experts": 1, "zero_expert_num": 1,
    # positions
    "max_position_embeddings": CONTEXT, "n_positions": CONTEXT, "n_ctx": CONTEXT, "max_seq_len": CONTEXT,
    "context_length": CONTEXT, "max_target_positions": CONTEXT, "seq_length": CONTEXT, "sliding_window": WINDOW,
    "sliding_window_size": WINDOW, "window_size": WINDOW, "local_attention": WINDOW, "attention_window_size": WINDOW,
    "attention_chunk_size": WINDOW, "keep_window_size": 48, "original_max_position_embeddings": CONTEXT // 2,
    "floor_scale": 16, "attn_scale": 0.3, "log_scaling_n_floor": 16,
    # factors, which are 1 in many a default
    "embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2, "logits_scaling": 1.5,
    "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0, "router_jitter_noise": 0.1,
    "input_jitter_noise": 0.1,
    # recurrent layers
    "mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_chunk_size": 8, "state_size": 8,
    "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "chunk_size": 8, "lru_width": 32,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "mamba_dt_rank": 4, "time_step_rank": 4, "attention_hidden_size": 32, "linear_head_dim": 8, "linear_num_heads": 4,
    "mamba_d_ssm": 64, "n_groups": 1,
    # tokens
    "vocab_size": tiny.VOCABULARY, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None,
    "vocab_size_per_layer_input": tiny.VOCABULARY, "decoder_vocab_size": tiny.VOCABULARY,
    "unpadded_vocab_size": tiny.VOCABULARY, "decoder_start_token_id": 1, "forced_eos_token_id": None,
    # pictures and sounds
    "image_size": 16, "patch_size": 8, "num_mel_bins": 8, "max_source_positions": 8,
}  # fmt: skip
EVEN_IF_NONE = ("head_dim", "num_key_value_heads", "num_experts_per_tok")
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
LATENT = {
    "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "head_dim": 16,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
}  # fmt: skip
DOTS3 = {**LATENT, **{f"swa_{name}": size for name, size in LATENT.items()}}
DRAFTER = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "num_hidden_layers": 2,
    "num_kv_shared_layers": 2}  # fmt: skip
GEMMA4 = {"hidden_size_per_layer_input": 8, "global_head_dim": 16}
LLAMA4 = {"num_hidden_layers": 4, "moe_layers": [1, 3], "no_rope_layers": [1, 1, 1, 0],
    "layer_types": ["chunked_attention", "full_attention"] * 2}  # fmt: skip
QWEN4 = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
    "indexer_compress_ratio": 2, "hc_lowrank": 8, "ngram_vocab_size_base": 50, "split_ngram_parts": 1}  # fmt: skip
SPECIAL: dict[str, dict[str, Any]] = {  # fields of a family, and tables of those of its parts
    "blt": {"encoder_hash_byte_group_vocab": 64, "encoder_hash_byte_group_size": [3, 4],
        "patcher_config": {"vocab_size": 100}, "encoder_config": {"hidden_size_global": 32},
        "decoder_config": {"hidden_size_global": 32}},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "cwm": {"bos_token_id": 2},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1},
    "dots3_note": {"text_config": DOTS3, "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
        "vision_config": {"adapter_in_dim": 32, "adapter_out_dim": 32, "num_experts_per_tok": 2}},
    "dots3_note_text": DOTS3,
    "emu3": {"text_config": {"bos_token_id": 2}},
    "gemma3n_text": {"num_hidden_layers": 4, "num_kv_shared_layers": 1, "intermediate_size": [48] * 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2, "hidden_size_per_layer_input": 8,
        "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0], "laurel_rank": 8},
    "gemma4": {"text_config": GEMMA4},
    "gemma4_text": GEMMA4,
    "gemma4_unified": {"text_config": GEMMA4},
    "gemma4_unified_text": GEMMA4,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2": {"block_multiple_of": 16, "num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "llama4": LLAMA4,
    "llama4_text": LLAMA4,
    "mamba2": {"num_heads": 8, "expand": 2},
    "mllama": {"text_config": {"bos_token_id": 2}},
    "modernbert-decoder": {"bos_token_id": 2, "sep_token_id": 3, "cls_token_id": 3},
    "qwen4_exp": {"text_config": QWEN4},
    "qwen4_exp_text": QWEN4,
    "reformer": {"is_decoder": True, "axial_pos_shape": (8, 8), "axial_pos_embds_dim": (16, 16), "num_buckets": 4,
        "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8, "attn_layers": ["local", "lsh"]},
    "roc_bert": {"pronunciation_vocab_size": 20, "shape_vocab_size": 20, "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "youtu": {"pad_token_id": None},  # else transformers zeroes the row of that token while it loads a checkpoint
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {  # what the default config of a family leaves out
    "llama+dynamic": {"rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 4.0}},
    "llama+llama3": {"rope_parameters": {**ROPE, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 16}},
    "llama+yarn": {"rope_parameters": {**ROPE, "rope_type": "yarn", "factor": 4.0,
        "original_max_position_embeddings": 16}},
    "llama4_text+untuned": {**LLAMA4, "attn_temperature_tuning": False},
    "ministral3+window": {"sliding_window": WINDOW},
    "mixtral+window": {"sliding_window": WINDOW},
    "phi3+longrope": {"original_max_position_embeddings": 40, "rope_parameters": {**ROPE, "rope_type": "longrope",
        "original_max_position_embeddings": 40, "short_factor": [1.0, 1.2, 1.4, 1.6],
        "long_factor": [2.0, 3.0, 5.0, 9.0]}},
    "phi3+window": {"sliding_window": WINDOW},
    "phimoe+window": {"sliding_window": WINDOW},
    "qwen2+window": {"use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"]},
    "starcoder2+window": {"sliding_window": WINDOW},
}  # fmt: skip
DECODER_OF = ("musicgen", "musicgen_melody")  # whose causal model is made of the decoder's config alone
WHOLE_CONFIG = ("emu3", "mllama")  # whose checkpoints are of the whole model, text and pictures
UNBUILDABLE: dict[str, dict[str, Any]] = {
    "gemma3n": {},  # its vision tower is timm's, which is not installed
    "gemma4_assistant": {"text_config": DRAFTER},  # drafts for another model, whose keys and values it reads
    "gemma4_unified_assistant": {"text_config": DRAFTER},
}


def names() -> list[str]:
    """Every model type that transformers has a causal language model for, and what some of them may have besides."""
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS})


def class_of(model_type: str) -> str:
    """The causal language model of a model type."""
    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type.partition("+")[0]])


def tiny_config(name: str) -> PretrainedConfig:
    """A config of a few thousand weights."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model_type = name.partition("+")[0]
    return _shrink(CONFIG_MAPPING[model_type], {**SPECIAL.get(model_type, {}), **VARIANTS.get(name, {})})


def _shrink(kind: type[PretrainedConfig], special: dict[str, Any]) -> PretrainedConfig:
    defaults, parts = kind(), getattr(kind, "sub_configs", {})
    values = {name: getattr(defaults, name) for name in _fields(kind) if _has(defaults, name)}
    set_ = [name for name, value in values.items() if value is not None or name in EVEN_IF_NONE or "token_id" in name]
    small: dict[str, Any] = {name: SMALL[name] for name in set_ if name in SMALL}
    small |= _one_layer_of_each_kind(values)
    if isinstance(rope := values.get("rope_parameters"), dict):
        small["rope_parameters"] = _short(rope)
    if "kv_lora_rank" in values:  # latent attention has as many keys as queries
        small["num_key_value_heads"] = 4
    for name in parts:
        if isinstance(part := getattr(defaults, name, None), PretrainedConfig):
            small[name] = _shrink(type(part), special.get(name, {})).to_dict()
    return kind(**small | {name: value for name, value in special.items() if name not in parts})


def _short(rope: dict[str, Any]) -> dict[str, Any]:
    """Rotary parameters that change what they do within a tiny context."""
    short = {name: _short(value) if isinstance(value, dict) else value for name, value in rope.items()}
    return short | ({"original_max_position_embeddings": 16} if "original_max_position_embeddings" in rope else {})


def _fields(kind: type[PretrainedConfig]) -> list[str]:
    common = {field.name for field in dataclasses.fields(PretrainedConfig)} - {"layer_types"}
    return [field.name for field in dataclasses.fields(kind) if field.name not in common]


def _has(config: PretrainedConfig, name: str) -> bool:
    try:
        return hasattr(config, name)
    except Exception:  # fields that differ from layer to layer refuse to be read
        return False


def _one_layer_of_each_kind(values: dict[str, Any]) -> dict[str, Any]:
    """Fields that say something of each layer, of the first layer of each kind; two layers at least."""
    count = values.get("num_hidden_layers")
    if not isinstance(count, int):
        return {}
    each = {name: v for name, v in values.items() if isinstance(v, list) and len(v) == count}
    if not each:
        return {}
    kinds = list(zip(*each.values(), strict=True))
    first = [layer for layer, kind in enumerate(kinds) if kinds.index(kind) == layer]
    chosen = first if len(first) > 1 else [0, 1]
    return {"num_hidden_layers": len(chosen)} | {name: [v[i] for i in chosen] for name, v in each.items()}


def build(model_type: str, folder: Path) -> PreTrainedModel | None:
    """Save a tiny random model to `folder`; None, and a config alone, where transformers cannot build the model."""
    if model_type in UNBUILDABLE:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type, **UNBUILDABLE[model_type]}))
        save_file({"nothing": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
        return None
    config = tiny_config(model_type)
    if model_type in DECODER_OF:
        model = getattr(transformers, class_of(model_type))(config.decoder)
    else:
        model = tiny.build(config)
    model.save_pretrained(folder)
    if model_type in WHOLE_CONFIG:
        config.save_pretrained(folder)
    return model
