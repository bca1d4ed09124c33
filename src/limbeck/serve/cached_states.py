"""Hidden states of requests, each prefix that they share with each other or with earlier ones computed once.

    reader = CachedStates(parts, PrefixCache(512 * 2**20), budget=8192, device=lm.device)
    states = reader.states(requests)                    # [n, d] of each

Of sequences that begin alike and whose beginning is not known, one goes first, and the others wait for its blocks: a
batch takes two passes where a prompt is new, one where it is known. Which is which changes a state by rounding alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from limbeck.models.after_prefixes import Kept, Row, empty_keys, states_after
from limbeck.models.llama import LlamaParts
from limbeck.records import Ints, ScoreRequest
from limbeck.serve.prefix_cache import BLOCK, Known, PrefixCache


@dataclass
class _Sequence:
    """One request on its way."""

    ids: Ints  # that are fed
    needed: Ints  # positions whose states are wanted
    names: list[bytes]
    waited: int = -1  # blocks that were known when it last waited for another

    def begin(self, known: Sequence[Known], wanted: int) -> None:
        self.known = known
        self.before = BLOCK * len(known)
        self.stored = np.arange(self.before, max(self.before, BLOCK * wanted))
        self.read = np.union1d(self.needed[self.needed >= self.before], self.stored)  # positions that are computed

    def finish(self, states_Sd: Tensor) -> Tensor:
        """[n, d] of the needed positions, from those at `read` and from what was known."""
        own = self.needed[self.needed >= self.before]
        own_nd = states_Sd[torch.from_numpy(np.searchsorted(self.read, own))]
        if len(own) == len(self.needed):
            return own_nd
        known_Cd = torch.cat([block.states for block in self.known])
        return torch.cat([known_Cd[torch.from_numpy(self.needed[self.needed < self.before])], own_nd])


class CachedStates:
    """`budget` bounds the tokens of a pass."""

    def __init__(self, parts: LlamaParts, cache: PrefixCache, budget: int, device: torch.device) -> None:
        self.parts, self.cache, self.budget, self.device = parts, cache, budget, device

    def states(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        """[n, d] for each request, in order: the states that predict its scored tokens."""
        waiting = {}
        for index, request in enumerate(requests):
            fed = request.token_ids[: max(1, len(request.token_ids) - 1)]
            needed = np.flatnonzero(request.scored) - 1
            waiting[index] = _Sequence(fed, needed, self.cache.names(request.token_ids))
            self.cache.see(waiting[index].names)
        done: dict[int, Tensor] = {}
        while waiting:
            chosen = self._choose(waiting)
            done |= dict(zip(chosen, self._run([waiting.pop(index) for index in chosen]), strict=True))
        return [done[index] for index in range(len(requests))]

    def _choose(self, waiting: dict[int, _Sequence]) -> list[int]:
        """The next pass: no two that would compute the same block, as long as waiting for it helps."""
        chosen: list[int] = []
        leading: set[bytes] = set()
        used = 0
        for index, one in waiting.items():
            known = self.cache.find(one.names)
            own = len(one.ids) - BLOCK * len(known)
            following = one.names[len(known)] if len(known) < len(one.names) else None
            if following in leading and len(known) > one.waited:
                one.waited = len(known)
                continue
            if chosen and used + own > self.budget:
                continue
            if following is not None:
                leading.add(following)
            used += own
            one.begin(known, self.cache.wanted(one.names))
            chosen.append(index)
        return chosen

    def _run(self, chosen: Sequence[_Sequence]) -> list[Tensor]:
        rows, kept, start = [], {}, 0
        prefixes: dict[bytes, Tensor] = {}  # the sequences of one prompt share its keys
        for number, one in enumerate(chosen):
            prefix = None
            if one.known:
                name = one.names[len(one.known) - 1]
                if name not in prefixes:
                    prefixes[name] = torch.cat([block.keys for block in one.known], dim=3)
                prefix = prefixes[name]
            if len(one.stored):
                kept[number] = Kept(start, empty_keys(self.parts, len(one.stored)))
            rows.append(Row(start, start + len(one.ids) - one.before, prefix))
            start = rows[-1].end
        predict = [row.start + one.read - one.before for row, one in zip(rows, chosen, strict=True)]
        states_Sd = states_after(
            self.parts,
            self._tensor([one.ids[one.before :] for one in chosen]),
            self._tensor([np.arange(one.before, len(one.ids)) for one in chosen]),
            rows,
            self._tensor(predict),
            list(kept.values()),
        )
        parts = torch.split(states_Sd, [len(one.read) for one in chosen])
        for number, into in kept.items():
            self._keep(chosen[number], into.out, parts[number])
        return [one.finish(part) for one, part in zip(chosen, parts, strict=True)]

    def _keep(self, one: _Sequence, keys: Tensor, states_Sd: Tensor) -> None:
        of_blocks = states_Sd[torch.from_numpy(np.searchsorted(one.read, one.stored))]
        blocks = [
            Known(k.clone(), s.clone())
            for k, s in zip(torch.split(keys, BLOCK, dim=3), torch.split(of_blocks, BLOCK), strict=True)
        ]
        first = len(one.known)
        self.cache.put(one.names[first : first + len(blocks)], blocks)

    def _tensor(self, parts: Sequence[Ints]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(self.device)
