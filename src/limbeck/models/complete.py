"""Whether what was loaded is what the files say: every weight of the files, every weight of the model, every id."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from limbeck.errors import ModelError
from limbeck.formatting import shown
from limbeck.models.causal_lm import CausalLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Buffers that older files carry, and that the model of today makes itself. What an architecture itself declares to
# ignore (`_keys_to_ignore_on_load_unexpected`) transformers has taken out already.
OLD_BUFFERS = re.compile(r"(^|\.)(inv_freq|masked_bias|position_ids|cos_cached|sin_cached)$")


def check_loading(name: str, model: PreTrainedModel, loading: Mapping[str, Any]) -> None:
    """Raises `ModelError` for a weight that is in the files or in the model only, or in another shape.

    `loading` is transformers' `output_loading_info`, which itself takes all of these for granted.
    """
    for kind in ("missing_keys", "mismatched_keys"):
        if keys := sorted(key if isinstance(key, str) else key[0] for key in loading[kind]):
            raise ModelError(
                f"{name}: the checkpoint has no usable value for {len(keys)} weights ({kind}), such as {keys[0]!r}. "
                "They would start at random: use a complete checkpoint."
            )
    if messages := loading.get("error_msgs"):
        raise ModelError(f"{name}: its weights cannot be read: {shown(messages[0], 300)}. Use another checkpoint.")
    buffers = [buffer for buffer, _ in model.named_buffers()]
    unread = [
        key
        for key in sorted(loading["unexpected_keys"])
        if not OLD_BUFFERS.search(key) and not any(f".{buffer}".endswith(f".{key}") for buffer in buffers)
    ]
    if unread:
        raise ModelError(
            f"{name}: its files hold {len(unread)} weights that a {type(model).__name__} of its config.json does not "
            f"have, such as {unread[0]!r}. They would not be read, and it would be another model. Take the config.json "
            "that belongs to the weights, or save the language model alone with save_pretrained(folder)."
        )
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False) and model._tied_weights_keys
    if tied and None not in ends and ends[0].weight is not ends[1].weight:
        raise ModelError(
            f"{name}: config.json says that the output head is the embedding (tie_word_embeddings), but its files hold "
            "two that differ. Set tie_word_embeddings = false there, or remove the head from the files."
        )


def check_stop_ids(lm: CausalLM) -> None:
    """Raises `ModelError` for an end of sequence in the generation config that is no token of the model."""
    found = getattr(getattr(lm.model, "generation_config", None), "eos_token_id", None)
    for id_ in found if isinstance(found, list | tuple) else [] if found is None else [found]:
        if isinstance(id_, bool) or not isinstance(id_, int) or not 0 <= id_ < lm.head_rows:
            raise ModelError(
                f"{lm.name}: eos_token_id = {shown(found)} in its generation_config.json (without one, config.json), "
                f"expected an id from 0 to {lm.head_rows - 1}, or a list of such. Correct it there; tokenizer.json has "
                "the ids."
            )
