"""Chat templates of the kinds that are around, over one tokenizer that has the special tokens of them all."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from limbeck.models.causal_lm import CausalLM
from tests import tiny

SPECIAL = (
    "<|im_start|>", "<|im_end|>", "<|header|>", "<|eot|>", "<s>", "</s>", "[INST]", "[/INST]", "<think>", "</think>",
    "[THINK]", "[/THINK]",
)  # fmt: skip
LETTERS = (*'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+=:.,;?!#{}"<|>/[]_ \n',)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "<s>{% for m in messages %}<|header|>{{ m.role }}\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|header|>assistant\n\n{% endif %}"
)
MISTRAL = (  # no system message, and nothing but a closing tag before an answer
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}</s>{% else %}{{ raise_exception('no such role') }}{% endif %}"
    "{% endfor %}"
)
ENDS_EARLIER_TURNS = (  # the last answer is left open
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if not loop.last %}<|eot|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
PLAIN = (  # no special token at all: the answer ends with the tokenizer's end of sequence
    "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENS_THINKING = (  # thoughts are taken out of the answer's text, and the prompt opens them
    "{% for m in messages %}<|header|>{{ m.role }}\n{{ m.content.split('[/THINK]')[-1] }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|header|>assistant\n[THINK]\n{% endif %}"
)


def tokenizer_of(template: str | None, **more: Any) -> PreTrainedTokenizerFast:
    """One token a character, and those of `SPECIAL`, whose place among the ids may be given."""
    special = more.pop("special", SPECIAL)
    wrapped = tiny.character_tokenizer(("<pad>", "<eos>", "<unk>", *special, *LETTERS), **more)
    wrapped.add_tokens([AddedToken(token, special=True, normalized=False) for token in special], special_tokens=True)
    wrapped.chat_template = template
    return wrapped


def lm_of(template: str | None, seed: int = 0, **more: Any) -> CausalLM:
    """A tiny model in float64, whose distributions are not flat."""
    tokenizer = tokenizer_of(template, **more)
    size = len(tokenizer)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=256, tie_word_embeddings=False, bos_token_id=None, eos_token_id=1, pad_token_id=0,
        )
    )  # fmt: skip
    with torch.no_grad():
        model.lm_head.weight.mul_(2.0 / model.lm_head.weight.std() / 8**0.5)
    return tiny.in_float64(CausalLM(f"tiny-{seed}", model.eval(), tokenizer, size))  # type: ignore[arg-type]
