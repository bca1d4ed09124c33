"""An agent as an environment: a function in a process of its own, which talks to the student by HTTP.

    environment = AgentEnvironment(gateway, AgentProcesses("my_agent:run"), "student", row_of, task.grade)
    await environment.start()
    await environment.run(prompt, key, generate)      one rollout: an episode, or what went wrong as a Failure

The function's process knows the address of its own session alone. What it returns ends the session, and so does the
time limit of the run's episodes: whoever runs this cancels it then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from limbeck.environments.agent_processes import AgentProcesses, Ended
from limbeck.errors import DataError
from limbeck.gateway import Address, Gateway, SessionReport
from limbeck.protocols import Generate
from limbeck.records import Episode, Failure, Key, Prompt
from limbeck.seeding import derive_seed

RowOf = Callable[[Prompt], Mapping[str, Any]]
Grade = Callable[[Prompt, str], float | None]
LOOPBACK = "127.0.0.1,localhost"


class AgentEnvironment:
    """`model` is the name that agents ask for, `row_of` what the function is given of a prompt.

    `grade` grades a text that it returns.
    """

    def __init__(self, gateway: Gateway, processes: AgentProcesses, model: str, row_of: RowOf, grade: Grade) -> None:
        self.gateway, self.processes, self.model, self.row_of, self.grade = gateway, processes, model, row_of, grade

    async def start(self) -> None:
        """Raises `RecipeError` where the agent or the address cannot be had."""
        await self.processes.start()
        await self.gateway.__aenter__()

    async def close(self) -> None:
        await self.processes.close()
        await self.gateway.__aexit__(None, None, None)

    async def run(self, prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
        address = self.gateway.open(generate, prompt.id)
        report = None
        try:
            seed = derive_seed(generate.sampling.seed, "agent", key.prompt_id, key.sample, key.occurrence)
            offered = self._offered(prompt, key, address, seed)
            ended = await self.processes.run(offered, variables(address, self.model), seed)
        finally:
            report = self.gateway.close(address.id)
        return episode_of(prompt, generate, report, *self._verdict(prompt, ended))

    def _offered(self, prompt: Prompt, key: Key, address: Address, seed: int) -> dict[str, Any]:
        return {
            "row": self.row_of(prompt),
            "base_url": address.base_url,
            "api_key": address.api_key,
            "model": self.model,
            "sample": key.sample,
            "seed": seed,
        }

    def _verdict(self, prompt: Prompt, ended: Ended) -> tuple[Mapping[str, Any], str, str]:
        """The reward, or the kind of failure and its message."""
        if ended.kind != "returned":
            return {}, f"agent_{ended.kind}", ended.message
        return graded(prompt, ended.value, self.grade)


def variables(address: Address, model: str) -> dict[str, str]:
    """What an agent that takes no arguments finds in its environment: those that packages of the field read."""
    return {
        "OPENAI_BASE_URL": address.base_url,
        "OPENAI_API_BASE": address.base_url,
        "OPENAI_API_KEY": address.api_key,
        "OPENAI_MODEL": model,
        "OPENAI_DEFAULT_MODEL": model,
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
        "NO_PROXY": LOOPBACK,
        "no_proxy": LOOPBACK,
    }


def graded(prompt: Prompt, value: Mapping[str, Any], grade: Grade) -> tuple[Mapping[str, Any], str, str]:
    """A reward as it was given, or of a text that is graded; where it cannot be, a kind of failure and its message."""
    if "answer" not in value:
        wrong = [each for each in (value.get("reward"), *value.get("turn_rewards", ())) if not _is_reward(each)]
        if wrong:
            return {}, "bad_reward", f"the reward is {wrong[0]!r}, expected a finite number or None"
        return value, "", ""
    try:
        reward = grade(prompt, value["answer"])
    except DataError as error:
        return {}, "bad_reward", str(error)
    if reward is None:
        return {}, "bad_reward", (
            "the agent gave a text, and there is nothing to grade it with. Return a number, or set task.grader and "
            "give the row an answer"
        )  # fmt: skip
    return {"reward": reward}, "", ""


def _is_reward(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))


def episode_of(
    prompt: Prompt, generate: Generate, report: SessionReport, value: Mapping[str, Any], kind: str, message: str
) -> Episode | Failure:
    """What came of a session: what was sampled with its reward, or the first thing that went wrong.

    Raises what sampling raised: that is the run's own trouble and not the agent's.
    """
    if report.raised is not None:
        raise report.raised
    if report.failure is not None:
        return report.failure
    if kind:
        return Failure(prompt.id, "run", kind, message)
    if not report.turns:
        return Failure(
            prompt.id, "run", "no_turns",
            f"the agent ended without an answer of the student's ({report.requests} requests, refused: "
            f"{dict(report.errors)}). It must ask at the address that it is given",
        )  # fmt: skip
    turn_rewards = value.get("turn_rewards", ())
    if turn_rewards and len(turn_rewards) != report.turns:
        return Failure(
            prompt.id, "run", "bad_reward",
            f"there are {len(turn_rewards)} turn_rewards, expected one for each of the {report.turns} turns",
        )  # fmt: skip
    return replace(generate.episode(value.get("reward"), turn_rewards), counts=report.metrics())
