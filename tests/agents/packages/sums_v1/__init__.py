"""A taskset of `verifiers`: sums, each right where the last answer is the sum."""

from __future__ import annotations

import verifiers.v1 as vf

__all__ = ["SumsTaskset"]


class SumsTask(vf.Task):
    @vf.reward
    async def right(self, trace) -> float:
        return float(trace.last_reply.strip() == self.data.name)


class SumsTaskset(vf.Taskset[SumsTask]):
    def load(self):
        for i in range(3):
            yield SumsTask(vf.TaskData(prompt=f"What is {i}+34?", name=str(i + 34)), self.config.task)
