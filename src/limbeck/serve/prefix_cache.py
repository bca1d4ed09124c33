"""Prefixes that return: keys, values and final states of blocks of tokens that were asked about more than once.

    cache = PrefixCache(512 * 2**20)
    names = cache.names(token_ids)                # one a whole block, each of all tokens up to its end
    known = cache.find(names)                     # blocks of the longest prefix that is known

The samples of a prompt, the turns of an agent and the probes of a contract begin alike. What is seen for the first
time is remembered by name alone; the second time its block is stored. So responses, which do not return, take no
memory. The least recently used goes first.

Blocks hold nothing that depends on a temperature, on what is scored or on what follows: by causality, a block's
numbers follow from the tokens that its name is a hash of.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from limbeck.records import Ints

BLOCK = 32  # tokens
REMEMBERED = 2**16  # names of blocks that were seen, stored or not


@dataclass(frozen=True, eq=False)
class Known:
    """One block."""

    keys: Tensor  # [G, 2, J, BLOCK, D], see `models.after_prefixes`
    states: Tensor  # [BLOCK, d] final states

    @property
    def size(self) -> int:
        return self.keys.nbytes + self.states.nbytes


class PrefixCache:
    """Holds at most `most` bytes."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0
        self._known: OrderedDict[bytes, Known] = OrderedDict()
        self._seen: OrderedDict[bytes, int] = OrderedDict()

    def names(self, ids: Ints) -> list[bytes]:
        """Of the whole blocks that a sequence begins with.

        Its last token is in none, for it is not fed to the model; nor is the one before, for something must be.
        """
        names, name = [], b""
        for start in range(0, len(ids) - BLOCK - 1, BLOCK):
            name = hashlib.blake2b(name + ids[start : start + BLOCK].tobytes(), digest_size=16).digest()
            names.append(name)
        return names

    def see(self, names: Sequence[bytes]) -> None:
        """Count a sequence that begins with these blocks."""
        for name in names:
            self._seen[name] = self._seen.pop(name, 0) + 1
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    def find(self, names: Sequence[bytes]) -> list[Known]:
        known = []
        for name in names:
            if name not in self._known:
                break
            known.append(self._known[name])
        for name in reversed(
            names[: len(known)]
        ):  # a block goes before those that it follows, or they would be of no use
            self._known.move_to_end(name)
        return known

    def wanted(self, names: Sequence[bytes]) -> int:
        """How many of these blocks, from the first, have been seen before, and are worth keeping."""
        return next((i for i, name in enumerate(names) if self._seen.get(name, 0) < 2), len(names))

    def put(self, names: Sequence[bytes], blocks: Sequence[Known]) -> None:
        """The blocks of these names, one after the other."""
        for name, known in reversed(list(zip(names, blocks, strict=True))):
            if name not in self._known:
                self._known[name] = known
                self.held += known.size
        while self.held > self.most:
            self.held -= self._known.popitem(last=False)[1].size
