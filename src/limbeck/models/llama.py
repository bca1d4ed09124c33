"""A Llama-like model: where its parts lie, and one definition of its block with attention plugged in.

    parts = parts_of(lm)                                   # or why this is no such model
    hidden_Sd = hidden_states_at(parts, tokens_BL, positions_BL, predict_S)

`run_block` says what a block is: norm, queries and keys and values, attention, output, norm, gated MLP. Three kinds
of attention are plugged into it: `WholeRows` and `AlongTree` here, and over cached keys in `decode` and
`decode_numba`. How tensors lie in memory is the business of the operations it is given: `ops` for whole sequences,
`decode.Columns` for one token of each row.

The model's own parameters are used where they lie, so an update is seen at once and nothing is kept twice. That
these parts do what they do in Llama is not guessed from names: `equivalence` proves it before any of this is used.

With a `narrow` dtype the matrices of float32 weights are cast to it block by block, and what is multiplied with them:
products and attention are computed in it; residuals, norms, rotations and softmax stay in float32, as under autocast.

Shape legend: N tokens of a pass, B rows of L tokens, H query heads, J key-value heads, D head width,
S states that are read, d model width, n any layer's width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeAlias

from torch import Tensor, dtype, is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint

from limbeck.models import ops
from limbeck.models.causal_lm import CausalLM
from limbeck.models.head import at_least_float32
from limbeck.models.prefix_tree import Tree, attend_along
from limbeck.models.shards import inside

SILU = ("SiLU", "SiLUActivation")

Attention: TypeAlias = Callable[["Block", Tensor, Tensor, Tensor], Tensor]  # of a block's queries, keys and values


class Matrix(Protocol):
    """A linear layer: an `nn.Linear`, or one whose weights were cast."""

    @property
    def weight(self) -> Tensor: ...

    @property
    def bias(self) -> Tensor | None: ...


@dataclass(frozen=True, eq=False)
class Cast:
    """A `Matrix` of other dtype. The gradient goes back to the one that it was made of."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class Block:
    """One layer's parts, as transformers holds them."""

    layer: nn.Module
    attention_norm: nn.Module
    query: Matrix
    key: Matrix
    value: Matrix
    query_norm: nn.Module | None
    key_norm: nn.Module | None
    output: Matrix
    mlp_norm: nn.Module
    gate: Matrix
    up: Matrix
    down: Matrix
    activation: nn.Module
    scaling: float


@dataclass(frozen=True, eq=False)
class LlamaParts:
    """The parts of a whole model."""

    embedding: nn.Embedding
    rotary: nn.Module
    blocks: tuple[Block, ...]
    norm: nn.Module
    head_width: int


class Operations(Protocol):
    """What a block does besides attention, on tensors that lie as the implementation likes them."""

    def normed_linears(self, x: Tensor, norm: Any, *linears: Matrix) -> tuple[Tensor, ...]: ...

    def add_linear(self, x: Tensor, y: Tensor, linear: Matrix) -> Tensor: ...

    def add_gated(self, x: Tensor, gate: Tensor, up: Tensor, down: Matrix) -> Tensor: ...


def run_block(
    block: Block, operations: Operations, attention: Attention, x: Tensor, read_S: Tensor | None = None
) -> Tensor:
    """The states after one block; only those at `read_S` where it is given: after the last attention the others
    are needed by nobody."""
    attended = attention(
        block, *operations.normed_linears(x, block.attention_norm, block.query, block.key, block.value)
    )
    if read_S is not None:
        x, attended = x.index_select(0, read_S), attended.index_select(0, read_S)
    x = operations.add_linear(x, attended, block.output)
    gate, up = operations.normed_linears(x, block.mlp_norm, block.gate, block.up)
    return operations.add_gated(x, gate, up, block.down)


def hidden_states_at(
    model: LlamaParts,
    tokens_BL: Tensor,
    positions_BL: Tensor,
    predict_S: Tensor,
    tree: Tree | None = None,
    checkpointing: bool = False,
    kept: list[tuple[Tensor, Tensor]] | None = None,
    narrow: dtype | None = None,
) -> Tensor:
    """[S, d] final states at the flat places `predict_S`, along `tree` or of rows that know only themselves.

    `positions_BL` may be [1, L] where all rows have the same. With `checkpointing` a block's inner tensors are
    made again for the backward pass, not kept. `kept` receives the keys and values of rows, [B, J, L, D], block by
    block.
    """
    x_Nd = model.embedding(tokens_BL).flatten(0, 1)
    rotation = rotation_of(model, x_Nd, positions_BL)
    attention: Attention = (
        WholeRows(model.head_width, tokens_BL.shape[1], rotation, kept)
        if tree is None
        else AlongTree(model.head_width, tree, rotation)
    )
    for block in model.blocks:
        read_S = predict_S if block is model.blocks[-1] else None
        step = partial(_run_cast, block, attention, narrow=narrow, read_S=read_S)
        run = partial(inside, block.layer, step)
        x_Nd = checkpoint(run, x_Nd, use_reentrant=False) if checkpointing and is_grad_enabled() else run(x_Nd)
    return ops.norm(x_Nd, model.norm)


def _run_cast(block: Block, attention: Attention, x_Nd: Tensor, narrow: dtype | None, read_S: Tensor | None) -> Tensor:
    return run_block(cast(block, narrow), ops, attention, x_Nd, read_S)


def cast(block: Block, narrow: dtype | None) -> Block:
    """The block with its matrices in `narrow`; itself where that is None."""
    if narrow is None:
        return block

    def of(matrix: Matrix) -> Cast:
        return Cast(matrix.weight.to(narrow), None if matrix.bias is None else matrix.bias.to(narrow))

    return replace(
        block, query=of(block.query), key=of(block.key), value=of(block.value), output=of(block.output),
        gate=of(block.gate), up=of(block.up), down=of(block.down),
    )  # fmt: skip


def rotation_of(model: LlamaParts, x_Nd: Tensor, positions_BL: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of each position, [B, L, D], in float32 at least."""
    cos_BLD, sin_BLD = model.rotary(at_least_float32(x_Nd[:1])[None], position_ids=positions_BL)
    return cos_BLD, sin_BLD


@dataclass(frozen=True, eq=False)
class WholeRows:
    """Attention within rows of `length` tokens, each to those before it in its row."""

    width: int
    length: int
    rotation: tuple[Tensor, Tensor]
    kept: list[tuple[Tensor, Tensor]] | None = None

    def __call__(self, block: Block, query_Nn: Tensor, key_Nn: Tensor, value_Nn: Tensor) -> Tensor:
        """[N, H * D]"""
        padded = ops.padded_length(self.length)
        query_BHLD, key_BJLD, value_BJLD = heads_of(
            block, self.width, self.length, self.rotation, query_Nn, key_Nn, value_Nn, padded
        )
        if self.kept is not None:
            self.kept.append((key_BJLD[:, :, : self.length], value_BJLD[:, :, : self.length]))
        attended_BHLD = ops.attend(query_BHLD, key_BJLD, value_BJLD, None, scaling=1.0)[:, :, : self.length]
        return attended_BHLD.transpose(1, 2).reshape(query_Nn.shape)


@dataclass(frozen=True, eq=False)
class AlongTree:
    """Attention of one flat row of tokens along a prefix tree."""

    width: int
    tree: Tree
    rotation: tuple[Tensor, Tensor]

    def __call__(self, block: Block, query_Nn: Tensor, key_Nn: Tensor, value_Nn: Tensor) -> Tensor:
        """[N, H * D]"""
        heads = heads_of(block, self.width, len(query_Nn), self.rotation, query_Nn, key_Nn, value_Nn)
        query_NHD, key_NJD, value_NJD = (part_1HND.transpose(1, 2).squeeze(0) for part_1HND in heads)
        return attend_along(self.tree, query_NHD, key_NJD, value_NJD, scaling=1.0).flatten(1)


def heads_of(
    block: Block,
    width: int,
    length: int,
    rotation: tuple[Tensor, Tensor],
    query_Nn: Tensor,
    key_Nn: Tensor,
    value_Nn: Tensor,
    padded: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """[B, H, L, D] queries, rotated and scaled, and [B, J, L, D] keys, rotated, and values; see `ops.heads`."""
    query_BLHD, key_BLJD, value_BLJD = (
        part_Nn.view(-1, length, part_Nn.shape[1] // width, width) for part_Nn in (query_Nn, key_Nn, value_Nn)
    )
    if block.query_norm is not None and block.key_norm is not None:
        query_BLHD, key_BLJD = ops.norm(query_BLHD, block.query_norm), ops.norm(key_BLJD, block.key_norm)
    cos_BLD, sin_BLD = rotation
    scaled = (cos_BLD * block.scaling, sin_BLD * block.scaling)  # no pass of its own over the scores
    query_BHLD, key_BJLD = ops.heads(query_BLHD, *scaled, padded), ops.heads(key_BLJD, cos_BLD, sin_BLD, padded)
    narrow = value_Nn.dtype  # a norm of float32 weights widens them
    return query_BHLD.to(narrow), key_BJLD.to(narrow), ops.heads(value_BLJD, padded=padded)


def parts_of(lm: CausalLM) -> LlamaParts | str:
    """The model's parts, or what there is in it that Llama has not. That they do what they do in Llama is unproven."""
    family = type(lm.model).__name__
    body: Any = lm.model.base_model
    try:
        if type(body.embed_tokens) is not nn.Embedding:
            raise TypeError(f"embed_tokens is a {type(body.embed_tokens).__name__}")
        blocks = tuple(_block(layer) for layer in body.layers)
        if others := sorted({type(block.activation).__name__ for block in blocks} - set(SILU)):
            return f"{family} has {others[0]} for its activation"
        for block in blocks:
            for norm in (block.attention_norm, block.mlp_norm, body.norm):
                norm.variance_epsilon  # noqa: B018 (a LayerNorm or Gemma's norm has none)
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
        layer=layer,
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
