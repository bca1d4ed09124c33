"""Limits of the episodes of a step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EpisodeLimits:
    """See `config.environment.EpisodesConfig`. Single turns have the defaults: any failure stops the step."""

    timeout: float | None = None  # seconds of the environment's own
    max_turns: int | None = None
    concurrency: int | None = None
    min_completed_fraction: float = 1.0
    at_once: bool = False  # turns are decoded as they come: of agents that run elsewhere, nobody knows who asks next
