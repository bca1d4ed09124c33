"""Whether a model does what Limbeck takes it to do, and whether two ways through it agree: proven on probes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from limbeck.errors import ModelError
from limbeck.models.causal_lm import CausalLM, first_line, text_config
from limbeck.models.prefix_tree import ATTENTION, attention, grow

PROBE_PARTS = (slice(0, 5), slice(5, 8))
PROBE_WIDTH = 12
PROBE_TOLERANCE = 1e-3  # nats; a missed soft cap or multiplier is off by far more


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
            f"{lm.name}: {type(lm.model).__name__} cannot be run as a body and a head: {first_line(error)}. "
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


def rope_switches_at(lm: CausalLM) -> int | None:
    """Tokens up to which rotary frequencies are one set, where more tokens anywhere in a batch choose another.

    Every row of a batch then turns by the set of the longest, and keys in a cache keep the set they were made with.
    """
    config = text_config(lm.model)
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [
        kind for kind in (parameters, *parameters.values()) if isinstance(kind, dict)
    ]  # some have one a layer type
    limits = []
    for kind in kinds:
        name = str(kind.get("rope_type", ""))
        if name == "longrope":
            original = kind.get("original_max_position_embeddings")
            limits.append(original or getattr(config, "original_max_position_embeddings", None) or 0)
        elif "dynamic" in name:
            limits.append(config.max_position_embeddings)
    return min((int(limit) for limit in limits), default=None)


def depends_on_batch(lm: CausalLM) -> str | None:
    """Why a row's states depend on what else is in its batch, within `lm.context`; None where they do not.

    Known by name (frequencies that follow the longest row) and, whatever the name, by a probe: one row alone, and
    beside a longer row that ends at the end of the context.
    """
    family, context = type(lm.model).__name__, lm.context
    limit = rope_switches_at(lm)
    if limit is not None and (context is None or context > limit):
        return (
            f"{family} turns every row of a batch by the frequencies of the longest once that has more than {limit} "
            f"tokens, and its context is {context}"
        )
    width = min(PROBE_WIDTH, context or PROBE_WIDTH)
    short = max(1, width // 2)
    tokens_2L = torch.arange(1, 2 * width + 1, device=lm.device).view(2, width) * 7919 % lm.vocabulary
    end = width if context is None else context
    positions_2L = torch.arange(width, device=lm.device).repeat(2, 1)
    positions_2L[1] += end - width
    with _evaluating(lm), torch.inference_mode():
        alone_Ld = lm.hidden(tokens_2L[:1, :short], positions_2L[:1, :short])[0]
        beside_Ld = lm.hidden(tokens_2L, positions_2L)[0, :short]
        worst = distance(lm, beside_Ld, alone_Ld)
    if worst <= tolerance(lm):
        return None
    return f"log-probs of a row of {family} change by {worst:.3g} nats with a longer row beside it"


def share_prompts(lm: CausalLM) -> str | None:
    """Let `lm` compute a prompt once for all its samples; None, or why this model cannot.

    Proven on a probe: two samples of one prompt and a sequence of its own, against each of them alone.
    """
    config, family = text_config(lm.model), type(lm.model).__name__
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
        why = f"{family} cannot: {first_line(error)}"
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


def tolerance(lm: CausalLM) -> float:
    """In nats: rounding of the dtype the model computes in, far below any mistake."""
    dtype = next(lm.model.parameters()).dtype
    return PROBE_TOLERANCE * (1 if dtype in (torch.float32, torch.float64) else 100)


@contextmanager
def _evaluating(lm: CausalLM) -> Iterator[None]:
    """`lm` in evaluation mode for as long as a probe runs."""
    was_training = lm.model.training
    lm.model.eval()
    try:
        yield
    finally:
        lm.model.train(was_training)
