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
from typing import TypeAlias

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

    `room` is how many tokens a whole sequence may have. A turn that would go beyond is shorter.
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
    ) -> None:
        self.prompt, self.key, self.sampling, self.top = prompt, key, sampling, top
        self.max_turns, self.room = max_turns, room
        self._submit = submit
        self._next = 0
        self._turns: dict[int, _Turn] = {}

    async def __call__(self, context: Context) -> Sampled | Failure:
        """Raises `ValueError` for a parent that has not been sampled."""
        prefix = np.asarray(context.token_ids, dtype=np.int64)
        if context.parent is not None:
            if context.parent not in self._turns:
                raise ValueError(
                    f"prompt {self.prompt.id!r}: turn {context.parent} has not been sampled, so nothing can follow it; "
                    f"there are turns {sorted(self._turns)}"
                )
            prefix = np.concatenate([self._turns[context.parent].token_ids, prefix])
        sampling = self._limited(context, len(prefix))
        if isinstance(sampling, Failure):
            return sampling
        number, self._next = self._next, self._next + 1
        key = replace(self.key, turn=number)
        sampled = await self._submit(SampleRequest(key, prefix, sampling, self.top))
        if isinstance(sampled, Failure):
            return sampled
        sampled = replace(sampled, turn=number)
        whole = np.concatenate([prefix, sampled.token_ids])
        self._turns[number] = _Turn(key, context, len(prefix), whole, sampled)
        return sampled

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
            trained=mask,
            logprobs=np.concatenate([sampled.logprobs for sampled in own]),
            versions=np.concatenate([np.full(len(s.token_ids), s.version, dtype=np.int64) for s in own]),
            sampling=self.sampling,
            turns=tuple(turns),
            top_ids=np.concatenate(tops) if tops else None,
            reason=self._turns[path[0]].context.reason,
        )
