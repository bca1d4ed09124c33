"""From a recipe's environment table to the environment: one entry in `ENVIRONMENTS` a kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from limbeck.assemble.own import checked_part
from limbeck.assemble.site import Site
from limbeck.config.environment import EpisodesConfig, PythonEnvironmentConfig, SingleTurnConfig
from limbeck.config.factory import build_part
from limbeck.environments.single_turn import SingleTurn
from limbeck.protocols import Environment
from limbeck.training.episodes import EpisodeLimits


def make_environment(site: Site) -> Environment:
    """The environment the caller gave, or the one of the recipe's table."""
    if site.given.environment is not None:
        return checked_part(site.given.environment, Environment, "environment")
    section = site.recipe.environment
    return ENVIRONMENTS[type(section)](section, site)


def limits_of(section: object, given: Environment | None) -> EpisodeLimits:
    """Of the table; an environment that the caller gave for a recipe that names none has those of `EpisodesConfig`."""
    if not isinstance(section, EpisodesConfig):
        if given is None:
            return EpisodeLimits()
        section = EpisodesConfig()
    return EpisodeLimits(section.timeout, section.max_turns, section.concurrency, section.min_completed_fraction)


def _single_turn(section: SingleTurnConfig, site: Site) -> Environment:
    return SingleTurn()


def _python(section: PythonEnvironmentConfig, site: Site) -> Environment:
    environment: Environment = build_part(section, "environment", site.build)
    return checked_part(environment, Environment, "environment")


ENVIRONMENTS: Mapping[type, Callable[[Any, Site], Environment]] = {
    SingleTurnConfig: _single_turn,
    PythonEnvironmentConfig: _python,
}
