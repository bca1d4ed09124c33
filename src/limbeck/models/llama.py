"""Llama and the models built like it: their parts, and whole sequences through them without transformers.

    parts = parts_of(lm)          # what lies where, or why this is no such model
    why_not = speed_up(lm)        # from here on `lm.states` goes through `states` below

The model's own parameters are used where they lie, so an update is seen at once and nothing is kept
twice. What a model does besides is not guessed from its name: `speed_up` compares states and gradients
with transformers' own on a probe, and a model of which they differ goes on through transformers.

Between the matrix products stand the few-pass functions of `layers`. After the attention of the last
layer only the tokens that predict something go on: of a prompt, nothing but keys and values is needed.

Shape legend: N tokens of a pass, B rows of L tokens, H query heads, J key-value heads, D head width,
S states that are read, d model width, n any layer's width.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from limbeck.models.causal_lm import CausalLM
from limbeck.models.equivalence import distance, share_prompts, tolerance
from limbeck.models.ops import FEW_KEYS, STRIDE, add_gated, add_linear, attend, heads, norm, normed_linears
from limbeck.models.prefix_tree import Tree, attend_along, grow

PROBE_TREE = ((3, (2, 3)), (2, ()))  # a stem of three tokens with branches of two and three, and one of two
PROBE_POSITIONS = (0, 1, 2, 3, 4, 3, 4, 5, 0, 1)
Gradients: TypeAlias = tuple[Tensor | None, ...]
SILU = ("SiLU", "SiLUActivation")
SMALL = 1e-2  # of the largest gradient: below that differences are counted as if a weight's gradients were so large


logger = logging.getLogger("limbeck")


@dataclass(frozen=True, eq=False)
class Block:
    """One layer's parts, as transformers holds them."""

    attention_norm: nn.Module
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    query_norm: nn.Module | None
    key_norm: nn.Module | None
    output: nn.Linear
    mlp_norm: nn.Module
    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear
    activation: nn.Module
    scaling: float

    @property
    def widths(self) -> list[int]:
        """Of queries, keys and values, all heads of each."""
        return [self.query.out_features, self.key.out_features, self.value.out_features]


@dataclass(frozen=True, eq=False)
class LlamaParts:
    """The parts of a whole model."""

    embedding: nn.Embedding
    rotary: nn.Module
    blocks: tuple[Block, ...]
    norm: nn.Module
    head_width: int


def parts_of(lm: CausalLM) -> LlamaParts | str:
    """The model's parts, or what there is in it that Llama has not. That they do what they do in Llama is unproven."""
    config, family = lm.model.config.get_text_config(), type(lm.model).__name__
    if kinds := sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention"}):
        return f"{family} has layers of {', '.join(kinds)}"
    if getattr(config, "layer_types", None) is None and getattr(config, "sliding_window", None):
        return f"{family} has a sliding window of {config.sliding_window}"
    body: Any = lm.model.base_model
    try:
        if type(body.embed_tokens) is not nn.Embedding:
            raise TypeError(f"embed_tokens is a {type(body.embed_tokens).__name__}")
        blocks = tuple(_block(layer) for layer in body.layers)
        if others := sorted({type(block.activation).__name__ for block in blocks} - set(SILU)):
            return f"{family} has {others[0]} for its activation"
        for each in (
            block_norm for block in blocks for block_norm in (block.attention_norm, block.mlp_norm, body.norm)
        ):
            each.variance_epsilon  # noqa: B018 (a LayerNorm or Gemma's norm has none)
        return LlamaParts(body.embed_tokens, body.rotary_emb, blocks, body.norm, body.layers[0].self_attn.head_dim)
    except (AttributeError, TypeError) as error:
        return f"{family} is not built like Llama: {error}"


def _block(layer: Any) -> Block:
    """Raises `AttributeError` or `TypeError` where a part is missing or of another kind."""

    def matrix(module: Any, name: str) -> nn.Linear:
        part = getattr(module, name)
        if type(part) is not nn.Linear:
            raise TypeError(f"{name} is a {type(part).__name__}")
        return part

    attention, mlp = layer.self_attn, layer.mlp
    return Block(
        attention_norm=layer.input_layernorm,
        query=matrix(attention, "q_proj"),
        key=matrix(attention, "k_proj"),
        value=matrix(attention, "v_proj"),
        query_norm=getattr(attention, "q_norm", None),
        key_norm=getattr(attention, "k_norm", None),
        output=matrix(attention, "o_proj"),
        mlp_norm=layer.post_attention_layernorm,
        gate=matrix(mlp, "gate_proj"),
        up=matrix(mlp, "up_proj"),
        down=matrix(mlp, "down_proj"),
        activation=mlp.act_fn,
        scaling=attention.scaling,
    )


def speed_up(lm: CausalLM, checkpointing: bool = False) -> str | None:
    """Let `lm.states` go through `states`; None, or why transformers' own pass has to do.

    With `checkpointing` a layer's inner tensors are made again for the backward pass, not kept.
    """
    parts = parts_of(lm)
    why = parts if isinstance(parts, str) else share_prompts(lm) or _unlike(lm, parts)
    lm.passes = (
        None if why is not None or isinstance(parts, str) else partial(states, parts, checkpointing=checkpointing)
    )
    logger.info("%s: whole sequences go through %s", lm.name, f"transformers: {why}" if why else "the short passes")
    return why


def _unlike(lm: CausalLM, parts: LlamaParts) -> str | None:
    """What `states` would not do as the model does it."""
    family, was_training = type(lm.model).__name__, lm.model.training
    if lm.model.config.get_text_config().attention_dropout or any(
        isinstance(module, nn.Dropout) and module.p for module in lm.model.modules()
    ):
        return f"{family} has dropout"
    lm.model.eval()
    try:
        why = _difference(lm, parts)
    except Exception as error:  # parts of those names that want something else, such as half-rotated heads
        why = (str(error).splitlines() or [type(error).__name__])[0]
    lm.model.train(was_training)
    return None if why is None else f"{family} is not computed like Llama: {why}"


def _difference(lm: CausalLM, parts: LlamaParts) -> str | None:
    """How states or gradients along a tree and in rows differ from transformers' on a probe."""
    tokens_N = torch.arange(1, 11, device=lm.device) * 7919 % lm.vocabulary
    positions_N = torch.tensor(PROBE_POSITIONS, device=lm.device)
    everywhere_N = torch.arange(len(tokens_N), device=lm.device)
    rows_BL = torch.arange(5, device=lm.device).expand(2, 5)
    tree, found = grow(PROBE_TREE).to(lm.device), []
    trained = [parameter for parameter in lm.model.parameters() if parameter.requires_grad]
    for ours in (False, True):
        with torch.enable_grad():
            if ours:
                along_Nd = states(parts, tokens_N[None], positions_N[None], everywhere_N, tree)
                rows_Nd = states(parts, tokens_N.view(rows_BL.shape), rows_BL, everywhere_N)
            else:
                along_Nd = lm.hidden(tokens_N[None], positions_N[None], tree)[0]
                rows_Nd = lm.hidden(tokens_N.view(rows_BL.shape), rows_BL).flatten(0, 1)
            states_Nd = torch.cat([along_Nd, rows_Nd])
            weight_Nd = torch.arange(states_Nd.numel(), device=lm.device).view_as(states_Nd).sin()
            value = (states_Nd * weight_Nd).sum()
        grads = torch.autograd.grad(value, trained, allow_unused=True) if trained else ()
        found.append((states_Nd.detach(), grads))
    (theirs_Nd, their_grads), (ours_Nd, our_grads) = found
    worst = distance(lm, ours_Nd, theirs_Nd)
    if not worst <= tolerance(lm):
        return f"log-probs differ by {worst:.3g} nats on a probe"
    worst = _gradient_distance(our_grads, their_grads)
    return None if worst <= tolerance(lm) else f"gradients differ by {worst:.3g} of the largest on a probe"


def _gradient_distance(ours: Gradients, theirs: Gradients) -> float:
    """Largest difference relative to the largest gradient of the same weight; infinite where one has none."""
    largest = max((grad.abs().max().item() for grad in theirs if grad is not None), default=0.0)
    worst = [0.0]
    for one, other in zip(ours, theirs, strict=True):
        if one is not None and other is not None:
            scale = max(other.abs().max().item(), SMALL * largest)
            worst.append((one - other).abs().max().nan_to_num(nan=torch.inf).item() / (scale or 1.0))
        elif one is not other:
            worst.append(torch.inf)
    return max(worst)


def states(
    model: LlamaParts,
    tokens_BL: Tensor,
    positions_BL: Tensor,
    predict_S: Tensor,
    tree: Tree | None = None,
    checkpointing: bool = False,
    kept: list[tuple[Tensor, Tensor]] | None = None,
) -> Tensor:
    """[S, d] final states at the flat places `predict_S`, along `tree` or of rows that start at position 0.

    `kept` is given the keys and values of rows, [B, J, L and more, D], layer by layer.
    """
    x_Nd = model.embedding(tokens_BL).flatten(0, 1)
    cos_1LD, sin_1LD = model.rotary(x_Nd[None], position_ids=positions_BL[:1])
    among = _Among(tree, tokens_BL.shape[1], model.head_width, cos_1LD[0], sin_1LD[0], kept)
    for block in model.blocks:
        run = partial(_layer, block, among, predict_S if block is model.blocks[-1] else None)
        x_Nd = checkpoint(run, x_Nd, use_reentrant=False) if checkpointing and torch.is_grad_enabled() else run(x_Nd)
    return norm(x_Nd, model.norm)


def _layer(block: Block, among: _Among, read_S: Tensor | None, x_Nd: Tensor) -> Tensor:
    """[N, d] the states after one layer, or [S, d] those at `read_S`."""
    attended_Nn = among.attend(block, *normed_linears(x_Nd, block.attention_norm, block.query, block.key, block.value))
    if read_S is not None:
        x_Nd, attended_Nn = x_Nd.index_select(0, read_S), attended_Nn.index_select(0, read_S)
    x_Nd = add_linear(x_Nd, attended_Nn, block.output)
    gate_Nn, up_Nn = normed_linears(x_Nd, block.mlp_norm, block.gate, block.up)
    return add_gated(x_Nd, gate_Nn, up_Nn, block.down)


@dataclass(frozen=True, eq=False)
class _Among:
    """Where the tokens of a pass stand, and so which attend to which."""

    tree: Tree | None
    length: int  # of a row
    width: int  # of a head
    cos_LD: Tensor
    sin_LD: Tensor
    kept: list[tuple[Tensor, Tensor]] | None = None

    def attend(self, block: Block, query_Nn: Tensor, key_Nn: Tensor, value_Nn: Tensor) -> Tensor:
        """[N, H * D]"""
        query_BLHD, key_BLJD, value_BLJD = (
            part_Nn.view(-1, self.length, part_Nn.shape[1] // self.width, self.width)
            for part_Nn in (query_Nn, key_Nn, value_Nn)
        )
        if block.query_norm is not None and block.key_norm is not None:
            query_BLHD, key_BLJD = norm(query_BLHD, block.query_norm), norm(key_BLJD, block.key_norm)
        room = None if self.tree is not None else self._room()
        turn = (self.cos_LD, self.sin_LD)
        scaled = (self.cos_LD * block.scaling, self.sin_LD * block.scaling)  # no pass of its own over the scores
        query_BHLD, key_BJLD = heads(query_BLHD, scaled, room), heads(key_BLJD, turn, room)
        if self.tree is not None:
            query_NHD, key_NJD = (part.transpose(1, 2).squeeze(0) for part in (query_BHLD, key_BJLD))
            return attend_along(self.tree, query_NHD, key_NJD, value_BLJD.squeeze(0), scaling=1.0).flatten(1)
        value_BJLD = heads(value_BLJD, None, room)
        if self.kept is not None:
            self.kept.append((key_BJLD, value_BJLD))
        attended_BHLD = attend(query_BHLD, key_BJLD, value_BJLD, None, scaling=1.0)
        return attended_BHLD[:, :, : self.length].transpose(1, 2).reshape(query_Nn.shape)

    def _room(self) -> int:
        """Tokens of a row, filled up where many small products are multiplied: causal, no token sees a filler."""
        return self.length if self.length > FEW_KEYS else -(-self.length // STRIDE) * STRIDE
