"""One key's conversation: what the student was shown, what it sampled, and the rollouts that follow.

    generate = Session(prompt, key, sampling, submit)
    first = await generate(Context(prompt_ids))
    second = await generate(Context(tool_output_ids, parent=0))     after the exact ids of turn 0
    generate.episode(reward=1.0)                                    one rollout, both turns trained

Tokens that were sampled are kept as ids; nothing is tokenized twice. A turn that goes on from one that another
turn has gone on from already begins a segment of its own, in which what was trained before is context.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, TypeAlias, TypeVar

import numpy as np

from limbeck.records import (
    Context,
    Episode,
    Failure,
    Ints,
    Key,
    Prompt,
    Rollout,
    Sampled,
    SampleRequest,
    Sampling,
    Turn,
)

Submit: TypeAlias = Callable[[SampleRequest], Awaitable[Sampled | Failure]]
Array = TypeVar("Array", bound=np.ndarray[Any, Any])


@dataclass(frozen=True, slots=True)
class _Turn:
    """One turn of the student, and the whole sequence up to its end."""

    key: Key
    context: Context
    prefix: int  # tokens before it
    token_ids: Ints  # prefix and turn
    sampled: Sampled


class Session:
    """See `protocols.Generate`. Turns are numbered as they are asked for; `top` as in `SampleRequest`.

    `room` is how many tokens a whole sequence may have. A turn that would go beyond is shorter. Ids of contexts are
    below `vocabulary`. Arrays that come in are copied and those that go out cannot be written to: what was sampled is
    trained, after what it was sampled after, whatever an environment does with its own arrays.
    """

    def __init__(
        self,
        prompt: Prompt,
        key: Key,
        sampling: Sampling,
        submit: Submit,
        top: int = 0,
        max_turns: int | None = None,
        room: int | None = None,
        vocabulary: int | None = None,
    ) -> None:
        self.prompt, self.key, self.sampling, self.top = prompt, key, sampling, top
        self.max_turns, self.room, self.vocabulary = max_turns, room, vocabulary
        self._submit = submit
        self._next = 0
        self._turns: dict[int, _Turn] = {}

    async def __call__(self, context: Context) -> Sampled | Failure:
        """Raises `ValueError` for a context that is none: of a parent that has not been sampled, or no token ids."""
        context = self._checked(context)
        prefix = context.token_ids
        if context.parent is not None:
            prefix = _fixed(np.concatenate([self._turns[context.parent].token_ids, prefix]))
        sampling = self._limited(context, len(prefix))
        if isinstance(sampling, Failure):
            return sampling
        number, self._next = self._next, self._next + 1
        key = replace(self.key, turn=number)
        sampled = await self._submit(SampleRequest(key, prefix, sampling, self.top))
        if isinstance(sampled, Failure):
            return sampled
        sampled = replace(
            sampled,
            turn=number,
            token_ids=_fixed(np.array(sampled.token_ids)),
            logprobs=_fixed(np.array(sampled.logprobs)),
            top_ids=None if sampled.top_ids is None else _fixed(np.array(sampled.top_ids)),
        )
        whole = _fixed(np.concatenate([prefix, sampled.token_ids]))
        self._turns[number] = _Turn(key, context, len(prefix), whole, sampled)
        return sampled

    def _checked(self, context: Context) -> Context:
        """A copy with `token_ids` of its own. Raises `ValueError` where it is no context."""
        where, parent, most = f"prompt {self.prompt.id!r}, turn {self._next}", context.parent, context.max_tokens
        if parent is not None and not (_is_whole(parent) and parent in self._turns):
            raise ValueError(
                f"{where}: turn {parent!r} has not been sampled, so nothing can follow it; there are turns "
                f"{sorted(self._turns)}"
            )
        if most is not None and not (_is_whole(most) and most >= 1):
            raise ValueError(f"{where}: max_tokens is {most!r}, expected a whole number of at least 1, or None")
        try:
            given = np.asarray(context.token_ids)
        except (ValueError, TypeError):  # such as lists of several lengths
            given = np.asarray(None)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise ValueError(
                f"{where}: token_ids is {_shown(context.token_ids)} (shape {given.shape}, {given.dtype}), expected "
                "token ids in one dimension, whole numbers"
            )
        if parent is None and not given.size:
            raise ValueError(
                f"{where}: token_ids is empty, expected at least one: the first sampled token needs a prefix"
            )
        end = np.iinfo(np.int64).max if self.vocabulary is None else self.vocabulary
        wrong = given[(given < 0) | (given >= end)]
        if wrong.size:
            raise ValueError(
                f"{where}: token_ids has {wrong[0]}, expected ids from 0 to {end - 1}, the student's vocabulary"
            )
        return replace(context, token_ids=_fixed(given.astype(np.int64, copy=True)))

    def _limited(self, context: Context, prefix: int) -> Sampling | Failure:
        """How the turn after `prefix` tokens is sampled: a shorter turn is the beginning of the longer one."""
        if self.max_turns is not None and self._next >= self.max_turns:
            why = f"the student had {self._next} turns already. End the episode, or raise environment.max_turns."
            return Failure(self.prompt.id, "run", "max_turns", why)
        left = self.sampling.max_tokens if self.room is None else self.room - prefix
        if left < 1:
            why = (
                f"{prefix} tokens come before turn {self._next}, which leaves none for it in a context of {self.room}. "
                "End the episode, or show the student less."
            )
            return Failure(self.prompt.id, "run", "context_length", why)
        most = min(left, self.sampling.max_tokens, context.max_tokens or self.sampling.max_tokens)
        return self.sampling if most == self.sampling.max_tokens else replace(self.sampling, max_tokens=most)

    def episode(self, reward: float | None = None, turn_rewards: Sequence[float] = ()) -> Episode:
        """Every turn so far, each trained in exactly one rollout."""
        if turn_rewards and len(turn_rewards) != len(self._turns):
            raise ValueError(
                f"prompt {self.prompt.id!r}: {len(turn_rewards)} turn_rewards for {len(self._turns)} turns that were "
                "sampled; give one each, or none"
            )
        rewards = dict(zip(sorted(self._turns), turn_rewards, strict=True)) if turn_rewards else {}
        if rewards and reward is None:
            reward = math.fsum(turn_rewards)
        parents = {turn.context.parent for turn in self._turns.values()}
        trained: set[int] = set()
        rollouts: list[Rollout] = []
        for leaf in sorted(turn for turn in self._turns if turn not in parents):
            rollouts.append(self._rollout(self._path(leaf), trained, len(rollouts), rewards))
        return Episode(self.key, tuple(rollouts), reward, tuple(turn_rewards))

    def _path(self, leaf: int) -> list[int]:
        """The turns that lead to `leaf`, the first one first."""
        path = [leaf]
        while (parent := self._turns[path[0]].context.parent) is not None:
            path.insert(0, parent)
        return path

    def _rollout(self, path: list[int], trained: set[int], segment: int, rewards: Mapping[int, float]) -> Rollout:
        """The sequence of one path; adds to `trained` the turns that it trains."""
        token_ids = self._turns[path[-1]].token_ids
        mask = np.zeros(len(token_ids), dtype=np.bool_)
        turns: list[Turn] = []
        own: list[Sampled] = []
        end = 0
        for number in path:
            turn = self._turns[number]
            if turn.prefix > end:
                turns.append(Turn(end, turn.prefix, turn.context.role, text=turn.context.text))
            end = len(turn.token_ids)
            turns.append(Turn(turn.prefix, end, "student", turn.key, turn.sampled.finish, reward=rewards.get(number)))
            if number not in trained:
                trained.add(number)
                own.append(turn.sampled)
                mask[turn.prefix : end] = True
        tops = [sampled.top_ids for sampled in own if sampled.top_ids is not None]
        return Rollout(
            prompt=self.prompt,
            key=self.key,
            segment=segment,
            token_ids=token_ids,
            trained=_fixed(mask),
            logprobs=_fixed(np.concatenate([sampled.logprobs for sampled in own])),
            versions=_fixed(np.concatenate([np.full(len(s.token_ids), s.version, dtype=np.int64) for s in own])),
            sampling=self.sampling,
            turns=tuple(turns),
            top_ids=_fixed(np.concatenate(tops)) if tops else None,
            reason=self._turns[path[0]].context.reason,
        )


def _fixed(array: Array) -> Array:
    """The array, which nobody can write to any more."""
    array.flags.writeable = False
    return array


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
