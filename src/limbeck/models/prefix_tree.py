"""The samples of one prompt as a tree: the prompt is computed once, its samples are suffixes of it.

All tokens of a pass are in one flat row, each prefix (what the samples of a prompt share) before its suffixes. A
prefix attends to itself, a suffix to its prefix and itself; everything but attention does not know where one token
ends and the next begins, so nothing is computed twice and there is no padding. Hidden states and gradients are those
of each sequence alone.

Attention is made of two parts, merged by their log-sum-exp (`attention`): every stretch, prefix or suffix, to itself,
and the suffixes of a family, end to end, to their prefix. So memory is linear in the tokens: no tensor has queries
and keys of a stretch for its sides, and no prefix is repeated for its suffixes. Where prefix and suffix have
`FEW_KEYS` at most, each suffix beside its prefix in plain operations is faster, and is taken on a CPU.

Worked example, suffixes "cd" and "e" of a prefix "ab", and "xy", which shares its prefix with no other and so
is a prefix without suffixes:

    tokens     a b c d e x y
    positions  0 1 2 3 2 0 1
    stretches  [[a, b], [c, d], [x, y], [e, .]]
    across     [[c, d, e]] to [[a, b]]

It replaces the model's attention function. A model for which it cannot (sliding windows, soft caps, other kernels)
is found by `equivalence.share_prompts`.

Shape legend: N tokens of a pass, n tokens of some rows, B rows of R places, F families with prefixes of at most K
tokens, S suffixes, H query heads, J key-value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from limbeck.models.attention import FEW_KEYS, NEVER, attend_part, is_exact_on_cpu, merged, one_width, part_backward
from limbeck.models.ops import attend

ATTENTION = "limbeck_tree"  # the name under which transformers knows `attention`
NOT_UNDERSTOOD = ("sliding_window", "softcap", "s_aux", "position_bias")  # what attention may be asked for besides
PADDED = 1.3  # times the scores of tokens that rows computed together may have, padding included,
FEW_SCORES = 2**16  # or so many more


@dataclass(frozen=True, eq=False)
class Rows:
    """Some of the flat row's tokens as rows of one length, filled to the right."""

    tokens_n: Tensor  # places in the flat row
    slots_n: Tensor  # which of the B * R places each has
    places_BR: Tensor  # the same the other way round; place 0 of the flat row where there is no token

    @property
    def padded(self) -> bool:
        return len(self.slots_n) < self.places_BR.numel()

    def take(self, x_NHD: Tensor) -> Tensor:
        """[B, H, R, D]"""
        return _at(x_NHD, self.places_BR)

    def flat(self, x_BHRD: Tensor) -> Tensor:
        """[n, H, D], the way back."""
        all_HD = x_BHRD.transpose(1, 2).flatten(0, 1)
        return all_HD.index_select(0, self.slots_n) if self.padded else all_HD

    def take_lse(self, lse_NH1: Tensor) -> Tensor:
        """[B, H, R], of which padding attends to nothing: it has no gradient."""
        taken_BHR = self.take(lse_NH1)[..., 0]
        if not self.padded:
            return taken_BHR
        is_padding_BR = torch.ones_like(self.places_BR, dtype=torch.bool)
        is_padding_BR.view(-1)[self.slots_n] = False
        return taken_BHR.masked_fill(is_padding_BR[:, None], NEVER)

    def to(self, device: torch.device) -> Rows:
        return Rows(self.tokens_n.to(device), self.slots_n.to(device), self.places_BR.to(device))


@dataclass(frozen=True, eq=False)
class Across:
    """The suffixes of each family, end to end in one row, and the prefix that all of them attend to."""

    suffixes: Rows
    prefixes: Rows
    bias_F11K: Tensor | None  # -inf where a prefix is padded; None where none is

    def to(self, device: torch.device) -> Across:
        bias_F11K = None if self.bias_F11K is None else self.bias_F11K.to(device)
        return Across(self.suffixes.to(device), self.prefixes.to(device), bias_F11K)


@dataclass(frozen=True, eq=False)
class Few:
    """Each suffix beside its prefix, in one softmax: for at most `FEW_KEYS` of both."""

    prefixes: Rows
    suffixes: Rows
    keys_SK: Tensor  # places in the flat row; place 0 where there is none
    bias_S1RK: Tensor  # 0 where a suffix attends, -inf where it does not

    def to(self, device: torch.device) -> Few:
        prefixes, suffixes = self.prefixes.to(device), self.suffixes.to(device)
        return Few(prefixes, suffixes, self.keys_SK.to(device), self.bias_S1RK.to(device))


@dataclass(frozen=True, eq=False)
class Tree:
    """Who attends to whom. Every token is in one of `stretches`; those of suffixes are in one of `across` too."""

    stretches: tuple[Rows, ...]
    across: tuple[Across, ...]
    few: Few | None = None

    @property
    def is_flat(self) -> bool:
        """Whether there are no suffixes: sequences end to end, which know only themselves."""
        return not self.across

    def to(self, device: torch.device) -> Tree:
        return Tree(
            tuple(rows.to(device) for rows in self.stretches),
            tuple(one.to(device) for one in self.across),
            None if self.few is None else self.few.to(device),
        )


def build(families: Sequence[tuple[int, Sequence[int]]]) -> Tree:
    """The tree of (tokens of the prefix, tokens of each suffix) in the order of the flat row.

    >>> tree = build([(2, [2, 1]), (2, [])])
    >>> [rows.tokens_n.tolist() for rows in tree.stretches], tree.across[0].suffixes.tokens_n.tolist()
    ([[0, 1, 2, 3, 5, 6, 4]], [2, 3, 4])
    """
    shapes: list[tuple[range, list[range]]] = []
    start = 0
    for prefix, lengths in families:
        ends = np.cumsum([start, prefix, *lengths]).tolist()
        parts = [range(one, end) for one, end in pairwise(ends)]
        shapes.append((parts[0], [part for part in parts[1:] if part]))
        start = ends[-1]
    stretches = [part for prefix, suffixes in shapes for part in (prefix, *suffixes)]
    across = [(prefix, range(suffixes[0].start, suffixes[-1].stop)) for prefix, suffixes in shapes if suffixes]
    together = _together(stretches, lambda stretch: (len(stretch), len(stretch)))
    families_together = _together(across, lambda family: (len(family[0]), len(family[1])))
    return Tree(
        tuple(_rows(part) for part in together), tuple(_across(part) for part in families_together), _few(shapes)
    )


def _few(shapes: Sequence[tuple[range, list[range]]]) -> Few | None:
    longest = max(len(prefix) for prefix, _ in shapes)
    widest = max((len(suffix) for _, suffixes in shapes for suffix in suffixes), default=0)
    if not widest or longest + widest > FEW_KEYS:
        return None
    pairs = [(prefix, suffix) for prefix, suffixes in shapes for suffix in suffixes]
    keys_SK = np.zeros((len(pairs), longest + widest), dtype=np.int64)
    bias_SRK = np.full((len(pairs), widest, longest + widest), -np.inf, dtype=np.float32)
    bias_SRK[:, :, longest:] = np.where(np.tri(widest, dtype=bool), 0, -np.inf)
    for row, (prefix, suffix) in enumerate(pairs):
        keys_SK[row, : len(prefix)] = prefix
        keys_SK[row, longest : longest + len(suffix)] = suffix
        bias_SRK[row, :, : len(prefix)] = 0
    rows = _rows([prefix for prefix, _ in shapes]), _rows([suffix for _, suffix in pairs])
    return Few(*rows, torch.from_numpy(keys_SK), torch.from_numpy(bias_SRK)[:, None])


def _together(items: Sequence[Any], sides_of: Callable[[Any], tuple[int, int]]) -> list[list[Any]]:
    """Longest first, in groups of like keys and queries, so that little is computed of padding."""
    groups: list[list[Any]] = []
    keys = queries = scores = 0  # longest of the last group, and scores of its tokens
    for item in sorted(items, key=sides_of, reverse=True):
        own_keys, own_queries = sides_of(item)
        count, own = (len(groups[-1]) if groups else 0) + 1, scores + own_keys * own_queries
        padded = count * max(keys, own_keys) * max(queries, own_queries)
        if not groups or padded > max(PADDED * own, own + FEW_SCORES):
            groups.append([])
            keys = queries = 0
            own = own_keys * own_queries
        groups[-1].append(item)
        keys, queries, scores = max(keys, own_keys), max(queries, own_queries), own
    return groups


def _rows(stretches: Sequence[range]) -> Rows:
    longest = max(map(len, stretches))
    tokens = np.concatenate([np.arange(part.start, part.stop) for part in stretches])
    slots = np.concatenate([np.arange(len(part)) + row * longest for row, part in enumerate(stretches)])
    places = np.zeros(len(stretches) * longest, dtype=np.int64)
    places[slots] = tokens
    return Rows(torch.from_numpy(tokens), torch.from_numpy(slots), torch.from_numpy(places).view(-1, longest))


def _across(families: Sequence[tuple[range, range]]) -> Across:
    prefixes, suffixes = _rows([prefix for prefix, _ in families]), _rows([suffix for _, suffix in families])
    if not prefixes.padded:
        return Across(suffixes, prefixes, None)
    bias_FK = torch.full(prefixes.places_BR.shape, -torch.inf)
    bias_FK.view(-1)[prefixes.slots_n] = 0
    return Across(suffixes, prefixes, bias_FK[:, None, None])


def attention(
    module: Any,
    query_1HND: Tensor,
    key_1HND: Tensor,
    value_1HND: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    tree: Tree | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: along `tree` where there is one, otherwise its own `sdpa`.

    Raises `NotImplementedError` for attention that is more than a softmax of scaled products.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if tree is None:
        width = value_1HND.shape[-1]
        if width != query_1HND.shape[-1]:  # no fused kernel takes two widths, and without one memory is quadratic
            query_1HND, key_1HND, value_1HND = one_width(query_1HND, key_1HND, value_1HND)
        output_1NHD, nothing = sdpa_attention_forward(
            module, query_1HND, key_1HND, value_1HND, mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output_1NHD[..., :width], nothing
    if extra := [name for name in NOT_UNDERSTOOD if kwargs.get(name) is not None]:
        raise NotImplementedError(f"attention with {extra[0]} = {kwargs[extra[0]]}")
    if dropout:
        raise NotImplementedError(f"attention with dropout = {dropout}")
    query_NHD, key_NHD, value_NHD = (x[0].transpose(0, 1) for x in (query_1HND, key_1HND, value_1HND))
    if torch.is_autocast_enabled(query_NHD.device.type):  # which rotates queries and keys in float32
        narrow = torch.get_autocast_dtype(query_NHD.device.type)
        query_NHD, key_NHD, value_NHD = query_NHD.to(narrow), key_NHD.to(narrow), value_NHD.to(narrow)
    return attend_along(tree, query_NHD, key_NHD, value_NHD, scaling)[None], None


def attend_along(
    tree: Tree, query_NHD: Tensor, key_NJD: Tensor, value_NJD: Tensor, scaling: float | None = None
) -> Tensor:
    """[N, H, D]"""
    if tree.few is not None and is_exact_on_cpu(query_NHD):
        return _attend_few(tree.few, query_NHD, key_NJD, value_NJD, scaling)
    scaling = query_NHD.shape[-1] ** -0.5 if scaling is None else scaling
    attended_NHD: Tensor = _Along.apply(query_NHD, key_NJD, value_NJD, tree, scaling)  # type: ignore[no-untyped-call]
    return attended_NHD


def _attend_few(few: Few, query_NHD: Tensor, key_NJD: Tensor, value_NJD: Tensor, scaling: float | None) -> Tensor:
    """[N, H, D]"""
    prefixes = few.prefixes
    key_SJKD, value_SJKD = (_at(x_NJD, few.keys_SK) for x_NJD in (key_NJD, value_NJD))
    of_prefixes = attend(prefixes.take(query_NHD), prefixes.take(key_NJD), prefixes.take(value_NJD), None, scaling)
    of_suffixes = attend(few.suffixes.take(query_NHD), key_SJKD, value_SJKD, few.bias_S1RK, scaling)
    attended = (prefixes.flat(of_prefixes), few.suffixes.flat(of_suffixes))
    places_N = torch.cat([few.prefixes.tokens_n, few.suffixes.tokens_n])
    return query_NHD.new_empty(*query_NHD.shape[:2], value_NJD.shape[2]).index_copy(0, places_N, torch.cat(attended))


def _at(x_NHD: Tensor, places_BR: Tensor) -> Tensor:
    """[B, H, R, D]"""
    return x_NHD.index_select(0, places_BR.flatten()).view(*places_BR.shape, *x_NHD.shape[1:]).transpose(1, 2)


class _Along(Function):
    """Keeps queries, keys, values, what was attended and its log-sum-exp; weights are made again."""

    @staticmethod
    def forward(ctx: Any, query_NHD: Tensor, key_NJD: Tensor, value_NJD: Tensor, tree: Tree, scaling: float) -> Tensor:
        out_NHD = value_NJD.new_empty(*query_NHD.shape[:2], value_NJD.shape[2])
        lse_NH1: Tensor | None = None
        for rows in tree.stretches:
            out_BHRD, lse_BHR = attend_part(
                rows.take(query_NHD), rows.take(key_NJD), rows.take(value_NJD), scaling, causal=True
            )
            if lse_NH1 is None:
                lse_NH1 = lse_BHR.new_empty(*query_NHD.shape[:2], 1)
            out_NHD.index_copy_(0, rows.tokens_n, rows.flat(out_BHRD))
            lse_NH1.index_copy_(0, rows.tokens_n, rows.flat(lse_BHR[..., None]))
        assert lse_NH1 is not None
        for across in tree.across:
            rows, prefixes = across.suffixes, across.prefixes
            to_prefix = attend_part(
                rows.take(query_NHD), prefixes.take(key_NJD), prefixes.take(value_NJD), scaling, False, across.bias_F11K
            )
            own = (out_NHD.index_select(0, rows.tokens_n), lse_NH1.index_select(0, rows.tokens_n)[..., 0])
            out_nHD, lse_nH = merged(own, (rows.flat(to_prefix[0]), rows.flat(to_prefix[1][..., None])[..., 0]))
            out_NHD.index_copy_(0, rows.tokens_n, out_nHD)
            lse_NH1.index_copy_(0, rows.tokens_n, lse_nH[..., None])
        ctx.save_for_backward(query_NHD, key_NJD, value_NJD, out_NHD, lse_NH1)
        ctx.tree, ctx.scaling = tree, scaling
        return out_NHD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NHD: Tensor) -> tuple[Tensor | None, ...]:
        query_NHD, key_NJD, value_NJD, out_NHD, lse_NH1 = ctx.saved_tensors
        of_query_NHD, of_key_NJD, of_value_NJD = (torch.empty_like(x) for x in (query_NHD, key_NJD, value_NJD))

        def back(queries: Rows, keys: Rows, causal: bool, bias: Tensor | None = None) -> list[Tensor]:
            """Gradients of the queries, keys and values of these rows, flat again."""
            grads = part_backward(
                queries.take(grad_NHD), queries.take(query_NHD), keys.take(key_NJD), keys.take(value_NJD),
                queries.take(out_NHD), queries.take_lse(lse_NH1), ctx.scaling, causal, bias,
            )  # fmt: skip
            return [rows.flat(grad) for rows, grad in zip((queries, keys, keys), grads, strict=True)]

        for rows in ctx.tree.stretches:
            for all_NHD, grad_nHD in zip((of_query_NHD, of_key_NJD, of_value_NJD), back(rows, rows, True), strict=True):
                all_NHD.index_copy_(0, rows.tokens_n, grad_nHD.to(all_NHD.dtype))
        for across in ctx.tree.across:
            of_query, of_key, of_value = back(across.suffixes, across.prefixes, False, across.bias_F11K)
            of_query_NHD.index_add_(0, across.suffixes.tokens_n, of_query.to(of_query_NHD.dtype))
            of_key_NJD.index_add_(0, across.prefixes.tokens_n, of_key.to(of_key_NJD.dtype))
            of_value_NJD.index_add_(0, across.prefixes.tokens_n, of_value.to(of_value_NJD.dtype))
        return of_query_NHD, of_key_NJD, of_value_NJD, None, None
