"""What a model's masks and positions do beyond the few tokens of a probe, anywhere in its context."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from limbeck.models.causal_lm import CausalLM, text_config
from limbeck.models.shards import inside

NO_LIMIT = 2**16  # tokens, where a config has no context


def not_full_attention(lm: CausalLM) -> str | None:
    """What keeps a token from attending to all tokens before it, within the context: known by name, or by the masks."""
    config, family, end = text_config(lm.model), type(lm.model).__name__, lm.context or NO_LIMIT
    if kinds := sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention"}):
        return f"{family} has layers of {', '.join(kinds)}"
    window = getattr(config, "sliding_window", None)
    if window and window < end:
        return f"{family} has a sliding window of {window}"
    for mask_function in _masks_of(lm):
        zero, last = torch.tensor(0), torch.tensor(end - 1)
        seen_L = mask_function(zero, zero, last, torch.arange(end))
        if not bool(torch.as_tensor(seen_L).all()):
            return f"{family} has a mask that hides some of {end} tokens from the last"
    return None


def _masks_of(lm: CausalLM) -> list[Callable[..., Any]]:
    """Who attends to whom, as functions of two places: what transformers makes the model's masks from."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS

    kind, found = text_config(lm.model)._attn_implementation, []
    plain = MASKS.get(kind)
    if plain is None:
        return []

    def recording(*args: Any, **given: Any) -> Any:
        found.append(given["mask_function"])
        return plain(*args, **given)

    MASKS[kind] = recording  # of this instance; the class keeps the plain one
    try:
        with evaluating(lm), torch.no_grad():
            tokens_BL = torch.zeros(1, 2, dtype=torch.int64, device=lm.device)
            inside(lm.model, lambda: lm.hidden(tokens_BL))
    finally:
        del MASKS[kind]
    return found


@contextmanager
def evaluating(lm: CausalLM) -> Iterator[None]:
    """`lm` in evaluation mode for as long as a probe runs."""
    was_training = lm.model.training
    lm.model.eval()
    try:
        yield
    finally:
        lm.model.train(was_training)
