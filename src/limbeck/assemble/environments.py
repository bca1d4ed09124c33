"""From a recipe's environment table to the environment: one entry in `ENVIRONMENTS` a kind."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from limbeck.assemble.own import checked_part
from limbeck.assemble.site import Site
from limbeck.config.environment import (
    AgentEnvironmentConfig,
    EpisodesConfig,
    GatewayEnvironmentConfig,
    PythonEnvironmentConfig,
    ServedStudentConfig,
    SingleTurnConfig,
)
from limbeck.config.factory import build_part
from limbeck.config.task import AgentTaskConfig
from limbeck.environments.agent_processes import AgentProcesses
from limbeck.environments.single_turn import SingleTurn
from limbeck.errors import RecipeError
from limbeck.gateway import Gateway
from limbeck.protocols import Environment, Task
from limbeck.tasks.agent import row_of
from limbeck.training.episodes import EpisodeLimits
from limbeck.wire.bearer import bearer_token
from limbeck.wire.hosts import is_loopback


async def open_environment(site: Site, task: Task) -> Environment:
    """The environment the caller gave, or the one of the recipe's table, started; the run's resources close it."""
    if site.given.environment is not None:
        return checked_part(site.given.environment, Environment, "environment")
    section = site.recipe.environment
    environment = ENVIRONMENTS[type(section)](section, site, task)
    if isinstance(section, ServedStudentConfig):
        site.resources.push_async_callback(environment.close)
        await environment.start()
    started: Environment = checked_part(environment, Environment, "environment")
    return started


def limits_of(
    section: object, given: Environment | None, contexts: Sequence[int | None], vocabulary: int
) -> EpisodeLimits:
    """Of the table; an environment that the caller gave for a recipe that names none has those of `EpisodesConfig`.

    `contexts` are those of student and teachers: a sequence has to fit into each. `vocabulary` is the student's.
    """
    context = min((context for context in contexts if context is not None), default=None)
    if not isinstance(section, EpisodesConfig):
        if given is None:
            return EpisodeLimits(context=context, vocabulary=vocabulary)
        section = EpisodesConfig()
    return EpisodeLimits(
        None if isinstance(section, GatewayEnvironmentConfig) else section.timeout,  # it keeps its own
        section.max_turns,
        section.concurrency,
        section.min_completed_fraction,
        at_once=isinstance(section, ServedStudentConfig),
        context=context,
        vocabulary=vocabulary,
    )


def _single_turn(section: SingleTurnConfig, site: Site, task: Task) -> SingleTurn:
    return SingleTurn()


def _python(section: PythonEnvironmentConfig, site: Site, task: Task) -> Any:
    return build_part(section, "environment", site.build)


def _agent(section: AgentEnvironmentConfig, site: Site, task: Task) -> Any:
    from limbeck.environments.agent import AgentEnvironment

    agent = site.recipe.task
    assert isinstance(agent, AgentTaskConfig)
    processes = AgentProcesses(agent.function, agent.interpreter or sys.executable, agent.memory_mb)
    return AgentEnvironment(_gateway_of(section, site), processes, section.model, row_of, task.grade)


def _gateway(section: GatewayEnvironmentConfig, site: Site, task: Task) -> Any:
    if section.token_env is None and not is_loopback(section.host):
        raise RecipeError(
            f"environment.host = {section.host!r} can be reached by others. Set environment.token_env to the name of "
            "an environment variable that holds a bearer token, or listen on 127.0.0.1."
        )
    token = None if section.token_env is None else bearer_token(section.token_env, "environment.token_env")
    gateway = _gateway_of(section, site, host=section.host, port=section.port)
    from limbeck.environments.outside import OutsideAgents

    return OutsideAgents(gateway, section.model, row_of, task.grade, section.timeout, token)


def _gateway_of(section: ServedStudentConfig, site: Site, **address: Any) -> Gateway:
    missing = [package for package in ("fastapi", "uvicorn") if importlib.util.find_spec(package) is None]
    if missing:
        raise RecipeError(f"agents need the package {missing[0]!r}. Install it: pip install 'limbeck[gateway]'")
    return Gateway(
        site.student.tokenizer,
        model=section.model,
        context=site.student.context,
        tool_format=section.tool_format,
        keep_thinking=section.keep_thinking,
        template_options=getattr(site.recipe.task, "template_options", {}),
        **address,
    )


ENVIRONMENTS: Mapping[type, Callable[[Any, Site, Task], Any]] = {
    SingleTurnConfig: _single_turn,
    PythonEnvironmentConfig: _python,
    AgentEnvironmentConfig: _agent,
    GatewayEnvironmentConfig: _gateway,
}
