"""What the proofs of `equivalence` run: a few short sequences at the start, the middle and the end of a context.

The same 25 tokens in every form in which a fast way takes them: rows padded to the right, one flat row along a prefix
tree, sequences end to end, and prompts with tokens to decode one by one. Each form can be read in the same order.

Shape legend: B rows of L tokens, N tokens of the flat row, M tokens of all sequences, K decoded tokens, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.models.causal_lm import CausalLM
from limbeck.models.decode import Decoder
from limbeck.models.prefix_tree import Tree, build
from limbeck.models.reach import NO_LIMIT

FAMILIES = ((3, (2, 3)), (2, (3, 1)), (4, (2,)))  # (tokens of a prefix, of its suffixes): start, middle, end
LONGEST = 6


@dataclass(frozen=True, eq=False)
class Probe:
    """`rows_M` and `flat_M` are where the M tokens of all sequences, one after the other, are in rows and flat row."""

    rows_BL: Tensor
    rows_positions_BL: Tensor
    rows_M: Tensor
    flat_1N: Tensor
    flat_positions_1N: Tensor
    flat_M: Tensor
    tree: Tree
    firsts: tuple[int, ...]  # position of each family's first token

    @classmethod
    def of(cls, lm: CausalLM) -> Probe | None:
        """None where the context is too short."""
        end = lm.context or NO_LIMIT
        if end < LONGEST:
            return None
        firsts = (0, (end - LONGEST) // 2, end - LONGEST)
        flat: list[int] = []  # positions
        sequences: list[list[int]] = []  # places in the flat row
        shapes: list[tuple[int, Sequence[int]]] = []
        for first, (prefix, suffixes) in zip(firsts, FAMILIES, strict=True):
            places = list(range(len(flat), len(flat) + prefix))
            flat += range(first, first + prefix)
            for suffix in suffixes:
                sequences.append([*places, *range(len(flat), len(flat) + suffix)])
                flat += range(first + prefix, first + prefix + suffix)
            alone = len(suffixes) == 1  # shares with no other, and so is a prefix without suffixes
            shapes.append((prefix + suffixes[0], ()) if alone else (prefix, suffixes))
        flat_1N = torch.arange(1, len(flat) + 1)[None] * 7919 % lm.vocabulary
        rows_BL = torch.zeros(len(sequences), LONGEST, dtype=torch.int64)
        starts = torch.tensor([flat[places[0]] for places in sequences])
        for row, places in enumerate(sequences):
            rows_BL[row, : len(places)] = flat_1N[0, places]
        rows_M = [row * LONGEST + place for row, places in enumerate(sequences) for place in range(len(places))]
        flat_M = [place for places in sequences for place in places]
        return cls(
            rows_BL.to(lm.device),
            (starts[:, None] + torch.arange(LONGEST)).to(lm.device),
            torch.tensor(rows_M, device=lm.device),
            flat_1N.to(lm.device),
            torch.tensor(flat, device=lm.device)[None],
            torch.tensor(flat_M, device=lm.device),
            build(shapes).to(lm.device),
            firsts,
        )

    @property
    def packed_tokens(self) -> Tensor:
        """[1, M] sequences end to end."""
        return self.flat_1N[:, self.flat_M]

    @property
    def packed_positions(self) -> Tensor:
        """[1, M]"""
        return self.flat_positions_1N[:, self.flat_M]

    def of_rows(self, hidden_BLd: Tensor) -> Tensor:
        """[M, d]"""
        return hidden_BLd.flatten(0, 1)[self.rows_M]

    def decode(self, decoder: Decoder, once: bool) -> tuple[Tensor, Tensor]:
        """([K] which of the M tokens, [K, d] their states): prefixes computed, suffixes decoded, rows leaving.

        With `once` one row of each prefix.
        """
        prompts: list[list[int]] = []
        rows: list[tuple[int, list[int], int]] = []  # prompt, tokens to decode, where the first is among the M
        place = row = 0
        for number, (prefix, suffixes) in enumerate(FAMILIES):
            prompts.append(self.rows_BL[row, :prefix].tolist())
            for sample, suffix in enumerate(suffixes):
                if not (once and sample):
                    rows.append((number, self.rows_BL[row, prefix : prefix + suffix].tolist(), place + prefix))
                place, row = place + prefix + suffix, row + 1
        device = self.rows_BL.device
        start = decoder.prefill(prompts, self.firsts)
        prompt_B = torch.tensor([prompt for prompt, _, _ in rows], device=device)
        under_way = decoder.rows(start, prompt_B, LONGEST)
        read = [first - 1 for _, _, first in rows]
        found = [start.hidden_Pd[prompt_B]]
        left = list(range(len(rows)))
        for step in range(LONGEST):
            going = [b for b in left if step < len(rows[b][1])]
            if not going:
                break
            if len(going) < len(left):
                under_way.keep(torch.tensor([left.index(b) for b in going], device=device))
            left = going
            found.append(under_way.forward(torch.tensor([rows[b][1][step] for b in left], device=device)))
            read += [rows[b][2] + step for b in left]
        return torch.tensor(read, device=device), torch.cat(found)
