"""Tiny students and teachers: two teachers of one size and one name, and a student that always says "yes!"."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch

from tests import tiny

SAYS = "yes!"  # after ":"; then it ends


def teachers(folder: Path) -> tuple[str, str]:
    """Two folders of equal names, with equal configs and other weights."""
    return tuple(tiny.save(folder / place / "teacher", "llama-tied", seed) for place, seed in (("a", 1), ("b", 2)))  # type: ignore[return-value]


def sure_student(folder: Path) -> str:
    """Its next token follows from the last one alone, with a probability of nearly 1."""
    model = tiny.build(tiny.config_of("llama"), seed=3)
    ids = [tiny.ALPHABET.index(character) for character in (":", *SAYS, "<eos>")]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layers" in name and parameter.ndim == 2:
                parameter.mul_(0.05)
            elif "norm" in name:
                parameter.fill_(1.0)
        embeddings, head = model.get_input_embeddings().weight, model.lm_head.weight
        head.mul_(0.05)
        for before, after in pairwise(ids):
            head[after] = 4 * embeddings[before] / embeddings[before].norm()
    model.save_pretrained(folder)
    tiny.character_tokenizer().save_pretrained(folder)
    return str(folder)
