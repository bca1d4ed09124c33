"""Models small enough to make in a test: random weights, real architectures, one character tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from limbeck.models import SHIPPED

SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": None,
}  # fmt: skip
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128, "bos_token_id": None}


def make(kind: str, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A saved random model of an architecture, peaky enough to tell temperatures apart."""
    from transformers import CONFIG_MAPPING

    tokenizer = AutoTokenizer.from_pretrained(SHIPPED / "student")
    sizes = GPT2 if kind == "gpt2" else SMALL | ({"head_dim": 16} if kind.startswith("gemma") else {})
    config = CONFIG_MAPPING[kind](
        vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        **{**sizes, **changes},
    )  # fmt: skip
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms and biases that are all ones or zeros would hide mistakes
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "embed" in name or "wte" in name or "lm_head" in name:
                parameter.mul_(20)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
