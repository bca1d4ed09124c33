"""The environment table of a recipe: what happens around the student's turns, and how long it may take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from limbeck.config.base import Config
from limbeck.config.factory import PythonPartConfig
from limbeck.config.task import AgentTaskConfig
from limbeck.config.values import Concurrency, Fraction, Line, PositiveInt, Seconds


class EpisodesConfig(Config):
    """Limits of episodes of several turns. What ends at one is a failure of that episode alone, and counted."""

    timeout: Seconds = Field(
        600.0, description="seconds that an episode may take; those in which it waits for the student do not count"
    )
    max_turns: PositiveInt = Field(64, description="turns of the student in one episode")
    concurrency: Concurrency | None = Field(None, description="episodes that run at once; absent: all of a step")
    min_completed_fraction: Fraction = Field(
        0.5, description="share of a step's episodes that must be completed, or it stops; failed ones are left out"
    )


class SingleTurnConfig(Config):
    """One prompt gets one response. One that cannot be sampled stops the step."""

    kind: Literal["single_turn"] = "single_turn"


class PythonEnvironmentConfig(EpisodesConfig, PythonPartConfig):
    """An environment of your own: the factory returns an object with `run` (`protocols.Environment`)."""


class ServedStudentConfig(EpisodesConfig):
    """How agents see the student: as a model of an OpenAI-compatible server (extra `gateway`)."""

    model: Line = Field("student", description="the model's name that agents ask for")
    tool_format: Literal["auto", "hermes", "qwen3_coder", "llama3", "mistral"] = Field(
        "auto", description="how the student writes calls of tools; auto: as its chat template does"
    )
    keep_thinking: bool = Field(
        False, description="go on after the exact tokens also where the chat template leaves out earlier thinking"
    )


class AgentEnvironmentConfig(ServedStudentConfig):
    """The function of a task of kind `agent` is called for each rollout; goes by itself with such a task."""

    kind: Literal["agent"] = "agent"
    concurrency: Concurrency = Field(64, description="episodes that run at once, each in a process of its own")


class GatewayEnvironmentConfig(ServedStudentConfig):
    """Agents that run elsewhere ask for work by HTTP and say how it went; what `limbeck gateway` sets.

    `timeout` is here the seconds from the moment that an agent takes a rollout, all of them.
    """

    kind: Literal["gateway"] = "gateway"
    host: Line = Field("127.0.0.1", description="address to listen on; the default is for this machine only")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8600, description="0: any free port")
    token_env: Line | None = Field(
        None,
        description="environment variable with the token of requests for work; needed where others can reach us",
    )


EnvironmentConfig: TypeAlias = Annotated[
    SingleTurnConfig | PythonEnvironmentConfig | AgentEnvironmentConfig | GatewayEnvironmentConfig,
    Field(discriminator="kind"),
]


def complete_environment(given: Any) -> Any:
    """A task of kind `agent` has an environment of kind `agent`, unless the table names another."""
    task, environment = (given.get(key) if isinstance(given, Mapping) else None for key in ("task", "environment"))
    if isinstance(task, Mapping) and task.get("kind") == "agent" and isinstance(environment or {}, Mapping):
        return {**given, "environment": {"kind": "agent", **(environment or {})}}
    return given


def refuse_agent_without_gateway(task: object, environment: object) -> None:
    """Raises `ValueError` where one of task and environment is of agents and the other does not fit."""
    kind = getattr(environment, "kind", None)
    if isinstance(task, AgentTaskConfig) and not isinstance(environment, ServedStudentConfig):
        raise ValueError(
            f"environment.kind = {kind!r} does not go with task.kind = 'agent', whose function decides what happens. "
            "Remove environment.kind."
        )
    if isinstance(environment, AgentEnvironmentConfig) and not isinstance(task, AgentTaskConfig):
        raise ValueError(
            "environment.kind = 'agent' needs task.kind = 'agent', which names the function to call. For agents that "
            "run elsewhere start the recipe with `limbeck gateway`."
        )
