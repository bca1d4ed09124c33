"""Sampling and scoring of later steps, while updates are made.

    async with Pipeline(run, order) as pipeline:
        collected = await pipeline.rollouts(step)       # of each step in turn; then the update
        await pipeline.publish(step)                    # the update's weights: later steps may be sampled with them
        evaluation = await pipeline.evaluation(step)    # where there is one; the next update waits for it

What is sampled with which weights is a rule (`versions.py`). Without lag everything is done when it is asked for. With
lag all that is sampled with a version is started once that version is published: its evaluation first, then its steps,
each with its watched prompts. What fails is raised where it is asked for, after the updates before it; what nobody
asks for any more is stopped at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Literal, TypeAlias

from limbeck.records import Scored
from limbeck.seeding import derive_seed
from limbeck.training.collect import Collected, collect
from limbeck.training.evaluation import Evaluation, evaluate
from limbeck.training.prompt_order import Order
from limbeck.training.recording import is_recorded, sample_watched
from limbeck.training.run import Run
from limbeck.training.sources import collect_mixed
from limbeck.training.versions import version_of, versions_kept

Kind: TypeAlias = Literal["rollouts", "watched", "evaluation"]


class Pipeline:
    """What is under way ahead of the updates. `evaluated` says after which steps there is an evaluation."""

    def __init__(self, run: Run, order: Order, evaluated: Callable[[int], bool] = lambda step: False) -> None:
        self.run, self.order, self.evaluated = run, order, evaluated
        self.lag, self.steps = run.recipe.rollout.lag, run.recipe.steps
        self._views: dict[int, Run] = {}
        self._ahead: dict[tuple[Kind, int], asyncio.Task[Any]] = {}

    async def __aenter__(self) -> Pipeline:
        for version in (*versions_kept(self.run.start, self.lag), self.run.start):
            self._start_ahead(version)
        return self

    async def __aexit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing goes on behind the caller's back."""
        tasks, self._ahead = list(self._ahead.values()), {}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # what became of them matters to nobody

    def at(self, step: int) -> Run:
        """The run at the work of this step."""
        if step not in self._views:
            self._views = {number: view for number, view in self._views.items() if number >= self.run.made}
            self._views[step] = self.run.at(step, self._version(step))
        return self._views[step]

    def is_recorded(self, step: int) -> bool:
        """Whether the step's rollouts are kept, and its watched prompts were sampled when their weights were there."""
        return is_recorded(self.run, step) and (not self.lag or ("watched", step) in self._ahead)

    async def rollouts(self, step: int) -> Collected:
        """Those of the step. Raises what kept them from being sampled or scored."""
        collected: Collected = await self._take("rollouts", step)
        return collected

    async def watched(self, step: int) -> Sequence[Scored]:
        """Samples of the watched prompts, by the weights that the step was sampled with."""
        samples: Sequence[Scored] = await self._take("watched", step)
        return samples

    async def evaluation(self, step: int) -> Evaluation:
        """Of the weights after `step` updates, which are the learner's until this has returned."""
        found: Evaluation = await self._take("evaluation", step)
        return found

    async def publish(self, step: int) -> None:
        """The weights after `step` updates may be sampled from."""
        versions, policy = self.run.versions, await self.run.learner.publish()
        if not self.lag:
            await versions.load(policy)
            return
        versions.add(policy.hold())
        self._start_ahead(step)

    def _version(self, step: int) -> int | None:
        """Without lag the engine always has the right one: each is loaded when it is published."""
        return version_of(step, self.lag) if self.lag else None

    def _start_ahead(self, version: int) -> None:
        """All that is sampled with the weights of `version`, in order."""
        if not self.lag:
            return
        if self.evaluated(version) and version >= self.run.start:
            self._start("evaluation", version)
        for step in range(max(self.run.start, version) + 1, min(self.steps, version + 1 + self.lag) + 1):
            if version_of(step, self.lag) == version:
                self._start("rollouts", step)
                if is_recorded(self.run, step):
                    self._start("watched", step)

    def _start(self, kind: Kind, step: int) -> None:
        self._ahead[kind, step] = asyncio.create_task(self._work(kind, step), name=f"{kind} of step {step}")

    async def _take(self, kind: Kind, step: int) -> Any:
        task = self._ahead.get((kind, step))
        if task is None:
            return await self._work(kind, step)
        try:
            return await task
        finally:
            if task.done():
                del self._ahead[kind, step]

    def _work(self, kind: Kind, step: int) -> Coroutine[Any, Any, Any]:
        if kind == "rollouts":
            return self._collect(step)
        if kind == "evaluation":
            return self._evaluate(step)
        return sample_watched(self.run.at(step, self._version(step), aside=True))

    async def _collect(self, step: int) -> Collected:
        view, rollout = self.at(step), self.run.recipe.rollout
        sampling = view.sampling(derive_seed(view.recipe.seed, "step", step))
        prompts = self.order.at(step - 1)
        if view.sources is not None:
            return await collect_mixed(view, prompts, sampling, rollout.samples_per_prompt)
        return await collect(view, prompts, sampling, rollout.samples_per_prompt, journal=view.journal)

    async def _evaluate(self, step: int) -> Evaluation:
        view = self.run.at(step, step if self.lag else None)
        with view.phase("evaluate"):
            return await evaluate(view)
