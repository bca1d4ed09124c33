"""Whether a fast way through a model gives what transformers gives.

    why = share_prompts(lm)            # None: the layout "tree" may be used; else why not
    why = use_fused_forward(lm)        # None: from here on `lm.states` goes through `llama.hidden_states_at`
    decoder = fast_decode(lm)          # `decoder.why`: why transformers decodes, where it does

Nothing is guessed from a model's name. One probe of 25 tokens, at the start, in the middle and at the end of the
context, goes through transformers' own forward pass with explicit position ids, and through each fast way: rows,
prefix tree, packed rows, decoding token by token. States must agree everywhere. Gradients must agree too in the fused
forward, where they are written by hand; elsewhere they are torch's own. Lengths that a few tokens do not reach (a
sliding window of 4096) are read off the masks that transformers makes (`reach`). What is not proven equal goes through
transformers, and the log says why.

In bfloat16 two right ways differ by rounding, which grows with the model. There both are compared with the truth,
transformers' own pass of the same weights in float32: a way is taken if it is as near to that as transformers' pass in
bfloat16 is, within a factor: `NO_WORSE`, and for the worst of many weights' gradients, which varies more by chance,
`NO_WORSE_GRADIENT`.

Shape legend: B rows of L tokens, N tokens of one flat row, M tokens of all sequences, d model width, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from limbeck.errors import ModelError
from limbeck.models.causal_lm import CausalLM, first_line, precision, text_config
from limbeck.models.decode import Decoder, FastRows, FastRowsOf
from limbeck.models.head import at_least_float32
from limbeck.models.llama import LlamaParts, hidden_states_at, parts_of
from limbeck.models.prefix_tree import ATTENTION, attention
from limbeck.models.probe import Probe
from limbeck.models.reach import evaluating, not_full_attention
from limbeck.models.shards import gradients as gradients_of
from limbeck.models.shards import inside, largest
from limbeck.models.widening import NARROW, in_float32

PROBE_TOLERANCE = 1e-3  # nats; a missed soft cap or multiplier is off by far more
SMALL = 1e-2  # of the largest gradient: below that differences are counted as if a weight's gradients were so large
FEW = 8  # matrices
NO_WORSE, NO_WORSE_GRADIENT = 2.0, 4.0  # times the rounding of transformers' own pass

Found: TypeAlias = tuple[Tensor, tuple[Tensor | None, ...]]  # states [M, d], and gradients of some weights

logger = logging.getLogger("limbeck")


def prove_packing(lm: CausalLM) -> None:
    """Compare sequences laid end to end with the same ones in rows of their own. Raises `ModelError`.

    Models that can share prompts keep them apart by the tree. Of the others some make their attention mask without
    position ids: packed sequences see each other.
    """
    if share_prompts(lm) is None:
        return
    if why := _unlike(lm, lambda probe: lm.hidden(probe.packed_tokens, probe.packed_positions)[0]):
        raise ModelError(
            f"{lm.name}: {type(lm.model).__name__} cannot tell packed sequences apart ({why} from those of each "
            f"alone; expected at most {PROBE_TOLERANCE}). Set learner.layout = 'padded'."
        )


def share_prompts(lm: CausalLM) -> str | None:
    """Let `lm` compute a prompt once for all its samples; None, or why this model cannot."""
    config, family = text_config(lm.model), type(lm.model).__name__
    if config._attn_implementation == ATTENTION:
        return None
    if config._attn_implementation != "sdpa":
        return f"its attention is {config._attn_implementation!r}, not 'sdpa'"
    if why := not_full_attention(lm):
        return why
    _register_tree_attention()

    def along_tree(probe: Probe) -> Tensor:
        return lm.hidden(probe.flat_1N, probe.flat_positions_1N, tree=probe.tree)[0, probe.flat_M]

    @contextmanager
    def switched() -> Iterator[None]:
        lm.model.set_attn_implementation(ATTENTION)
        try:
            yield
        finally:
            lm.model.set_attn_implementation("sdpa")

    why = _unlike(lm, along_tree, context=switched)
    if why is None:
        lm.model.set_attn_implementation(ATTENTION)
    return None if why is None else f"{family}: {why}"


def use_fused_forward(lm: CausalLM, checkpointing: bool = False, autocast: torch.dtype | None = None) -> str | None:
    """Let `lm.states` go through `llama.hidden_states_at`; None, or why transformers' own pass has to do.

    With `autocast` it does so under that autocast, and under no other. With `checkpointing` a block's inner tensors are
    made again for the backward pass, not kept.
    """
    parts, family = parts_of(lm), type(lm.model).__name__
    lm.passes = None
    if isinstance(parts, str):
        why: str | None = parts
    elif lm.is_spread:
        why = "its layers lie on several devices"
    elif _has_dropout(lm):
        why = f"{family} has dropout"
    else:
        why = share_prompts(lm) or _fused_unlike(lm, parts, autocast)
    if why is None and not isinstance(parts, str):
        lm.passes, lm.passes_under = partial(_fused, parts, checkpointing, autocast), autocast
    logger.info("%s: whole sequences go through %s", lm.name, f"transformers: {why}" if why else "the fused forward")
    return why


def _fused(
    parts: LlamaParts,
    checkpointing: bool,
    narrow: torch.dtype | None,
    tokens_BL: Tensor,
    positions_BL: Tensor,
    predict_S: Tensor,
    tree: Any,
) -> Tensor:
    """Rows of a layout all have the same positions."""
    with torch.autocast(tokens_BL.device.type, enabled=False):  # it narrows what it wants narrow
        return hidden_states_at(parts, tokens_BL, positions_BL[:1], predict_S, tree, checkpointing, narrow=narrow)


def _fused_unlike(lm: CausalLM, parts: LlamaParts, autocast: torch.dtype | None) -> str | None:
    states = partial(hidden_states_at, parts, narrow=autocast)

    def rows(probe: Probe) -> Tensor:
        return states(probe.rows_BL, probe.rows_positions_BL, probe.rows_M)

    def along_tree(probe: Probe) -> Tensor:
        return states(probe.flat_1N, probe.flat_positions_1N, probe.flat_M, probe.tree)

    why = _unlike(lm, rows, along_tree, gradients=True, autocast=autocast)
    return None if why is None else f"{type(lm.model).__name__} is not computed like Llama: {why}"


def fast_decode(lm: CausalLM, autocast: torch.dtype | None = None) -> Decoder:
    """The fastest way to decode `lm` where it is that gives what transformers gives, and why not faster."""
    parts, family = parts_of(lm), type(lm.model).__name__
    why = parts if isinstance(parts, str) else not_full_attention(lm)
    if isinstance(parts, str) or why is not None:
        return Decoder(lm, why=why)
    numba_why = None
    if autocast is None and (numba_rows := _numba_rows(lm, parts)):
        numba_why = _decoded_unlike(Decoder(lm, parts, numba_rows), every_prompt_once=False)
        if numba_why is None:
            return Decoder(lm, parts, numba_rows)
    fast = Decoder(lm, parts, FastRows, narrow=autocast)
    why = _decoded_unlike(fast, every_prompt_once=True)
    if why is not None:
        return Decoder(lm, why=f"{family} is not computed like Llama: {why}")
    if numba_why is not None:
        logger.warning("%s decodes without numba: %s", lm.name, numba_why)
    return fast


def _numba_rows(lm: CausalLM, parts: LlamaParts) -> FastRowsOf | None:
    weight = parts.embedding.weight
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.float64):
        return None
    if find_spec("numba") is None:
        logger.info("%s would decode faster on this CPU with numba: pip install 'limbeck[cpu]'", lm.name)
        return None
    from limbeck.models.decode_numba import NumbaRows  # half a second to import

    return NumbaRows


def _decoded_unlike(decoder: Decoder, every_prompt_once: bool) -> str | None:
    """How states differ that are decoded token by token, rows leaving on the way.

    With several rows of a prompt, and with `every_prompt_once` also with one of each, where that is another way.
    """
    lm = decoder.lm
    probe = Probe.of(lm)
    if probe is None:
        return f"a context of {lm.context} tokens is too short for a probe"
    try:
        with evaluating(lm), torch.inference_mode():
            theirs, truth = _theirs(lm, probe, False, decoder.narrow)
            for once in {False, every_prompt_once}:
                read_K, decoded_Kd = probe.decode(decoder, once)
                true = None if truth is None else (truth[0][read_K], ())
                if why := _difference(lm, (theirs[0][read_K], ()), (decoded_Kd, ()), true):
                    return why
    except Exception as error:  # parts of those names that want something else, such as half-rotated heads
        return first_line(error)
    return None


def _unlike(
    lm: CausalLM,
    *ways: Callable[[Probe], Tensor],
    context: Callable[[], Any] = nullcontext,
    gradients: bool = False,
    autocast: torch.dtype | None = None,
) -> str | None:
    """How the states of one of `ways`, run in `context`, differ from transformers', or the gradients, if asked for.

    `autocast`: under which transformers runs; the ways narrow by themselves.
    """
    probe = Probe.of(lm)
    if probe is None:
        return f"a context of {lm.context} tokens is too short for a probe"
    try:
        with evaluating(lm):
            theirs, truth = _theirs(lm, probe, gradients, autocast)
            for way in ways:
                with context():
                    ours = _run(lm, partial(way, probe), gradients)
                if why := _difference(lm, theirs, ours, truth):
                    return why
    except Exception as error:  # whatever the architecture's own code raises
        return first_line(error)
    return None


def _theirs(lm: CausalLM, probe: Probe, gradients: bool, autocast: torch.dtype | None) -> tuple[Found, Found | None]:
    """What transformers gives, and the same in float32 where that rounds to fewer bits."""

    def rows() -> Tensor:
        return probe.of_rows(lm.hidden(probe.rows_BL, probe.rows_positions_BL))

    with precision(lm, autocast):
        theirs = _run(lm, rows, gradients)
    if (autocast or lm.run_in or next(lm.model.parameters()).dtype) not in NARROW:
        return theirs, None
    with in_float32(lm):
        return theirs, _run(lm, rows, gradients)


def _run(lm: CausalLM, states_of: Callable[[], Tensor], gradients: bool) -> Found:
    """States, and gradients of a fixed sum of them: of all vectors, and of the first and the last matrices.

    The gradients of the others are made by the same code, and go through those of the first.
    """
    tables = {id(module.weight) for module in lm.model.modules() if isinstance(module, nn.Embedding)}
    trained = [p for p in lm.model.parameters() if gradients and p.requires_grad and id(p) not in tables]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    few = {id(parameter) for parameter in (*matrices[:FEW], *matrices[-FEW:])}
    trained = [parameter for parameter in trained if parameter.ndim < 2 or id(parameter) in few]

    def states_and_sum() -> tuple[Tensor, Tensor]:
        states_Md = states_of()
        weight_Md = torch.arange(states_Md.numel(), device=lm.device).view_as(states_Md).sin().to(states_Md.dtype)
        return states_Md, (states_Md * weight_Md).sum()

    with torch.set_grad_enabled(bool(trained)):
        states_Md, value = inside(lm.model, states_and_sum)
    return states_Md.detach(), gradients_of(lm.model, value, trained) if trained else ()


def _difference(lm: CausalLM, theirs: Found, ours: Found, truth: Found | None) -> str | None:
    """What is wrong with `ours`. Given the truth, it may be as far from that as transformers is."""
    for found, far, no_worse in (
        ("log-probs differ by {:.3g} nats on a probe", _state_distance, NO_WORSE),
        ("gradients differ by {:.3g} of the largest on a probe", _gradient_distance, NO_WORSE_GRADIENT),
    ):
        if truth is None:
            worst, limit = far(lm, ours, theirs), tolerance(lm)
        else:
            worst, limit = far(lm, ours, truth), no_worse * far(lm, theirs, truth) + PROBE_TOLERANCE
        if not worst <= limit:
            return found.format(worst) + ("" if truth is None else f" (rounding explains {limit:.3g})")
    return None


def _state_distance(lm: CausalLM, one: Found, other: Found) -> float:
    return distance(lm, at_least_float32(one[0]), at_least_float32(other[0]))


def _gradient_distance(lm: CausalLM, one: Found, other: Found) -> float:
    """Largest difference relative to the largest gradient of the same weight; infinite where one has none."""
    ours, theirs = one[1], other[1]
    most = max((grad.abs().max().item() for grad in theirs if grad is not None and grad.numel()), default=0.0)
    worst = [0.0]
    for mine, yours in zip(ours, theirs, strict=True):
        if mine is not None and yours is not None:
            if yours.numel():  # of few rows some ranks have none
                scale = max(yours.abs().max().item(), SMALL * most)
                gap = at_least_float32(mine) - at_least_float32(yours)
                worst.append(gap.abs().max().nan_to_num(nan=torch.inf).item() / (scale or 1.0))
        elif mine is not yours:
            worst.append(torch.inf)
    return largest(lm.model, torch.tensor(max(worst))).item()


def _has_dropout(lm: CausalLM) -> bool:
    """Of attention, by name (a config need not have it), or as a module."""
    named = getattr(text_config(lm.model), "attention_dropout", None)
    return bool(named) or any(isinstance(module, nn.Dropout) and module.p for module in lm.model.modules())


def _register_tree_attention() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def distance(lm: CausalLM, one_Nd: Tensor, other_Nd: Tensor) -> float:
    """Largest difference of log-probs in nats; infinite where either is not finite."""

    def logprobs() -> list[Tensor]:
        return [lm.head().logits(hidden_Nd).log_softmax(-1) for hidden_Nd in (one_Nd, other_Nd)]

    with torch.no_grad():
        one_NV, other_NV = inside(lm.model, logprobs)
        return float((one_NV - other_NV).abs().max().nan_to_num(nan=torch.inf))


def tolerance(lm: CausalLM) -> float:
    """In nats: rounding of the dtype the model computes in, far below any mistake."""
    dtype = lm.run_in or next(lm.model.parameters()).dtype
    return PROBE_TOLERANCE * (1 if dtype in (torch.float32, torch.float64) else 100)
