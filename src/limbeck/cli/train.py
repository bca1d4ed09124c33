"""`limbeck train` and `limbeck gateway`. Imports nothing heavy until one runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from limbeck.cli.recipes import complete_override

RECIPE = click.argument("recipe", type=click.Path(path_type=Path))
OVERRIDES = click.argument("overrides", nargs=-1, shell_complete=complete_override)


@dataclass(frozen=True)
class HowToRun:
    """Where a run begins, and what it prints."""

    fresh: bool
    from_checkpoint: int | None
    quiet: bool
    as_json: bool


def runs_a_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """The arguments of a command that trains: a recipe, overrides, and a `HowToRun`."""

    @RECIPE
    @OVERRIDES
    @click.option("--fresh", is_flag=True, help="Delete the run's folder first, instead of resuming.")
    @click.option(
        "--from-checkpoint",
        type=click.IntRange(min=1),
        metavar="STEP",
        help="Go on from the checkpoint of STEP instead of the newest; what came after it is removed and made again.",
    )
    @click.option("--quiet", is_flag=True, help="Print warnings and errors only.")
    @click.option("--json", "as_json", is_flag=True, help="Print the lines of metrics.jsonl, one JSON object each.")
    @wraps(command)
    def with_options(fresh: bool, from_checkpoint: int | None, quiet: bool, as_json: bool, **more: Any) -> None:
        if fresh and from_checkpoint is not None:
            raise click.UsageError("give --fresh or --from-checkpoint STEP, not both: each says where the run begins")
        command(how=HowToRun(fresh, from_checkpoint, quiet, as_json), **more)

    return with_options


def train_to_end(recipe: Path, overrides: Sequence[str], how: HowToRun, supervised: bool = False) -> None:
    from limbeck.config.recipe import load_recipe
    from limbeck.config.sft import refuse_overrides, sft_table

    if supervised:
        refuse_overrides(overrides)
    loaded = load_recipe(
        recipe, overrides, sft_table if supervised else None
    )  # a mistake in it is reported before anything heavy is imported
    from limbeck import api
    from limbeck.trackers.console import make_console

    console, start = make_console(loaded, how.quiet, how.as_json), time.perf_counter()
    observers = [console] if console else []
    result = api.train(loaded, fresh=how.fresh, from_checkpoint=how.from_checkpoint, observers=observers)
    if not how.quiet and not how.as_json:
        from rich.console import Console

        from limbeck.trackers.ending import show_ending

        lines, seconds = [*result.steps, *result.evaluations], time.perf_counter() - start
        show_ending(Console(highlight=False), result.folder, lines, seconds, start=result.start)


@click.command(short_help="Train the student of a recipe.")
@runs_a_recipe
def train(recipe: Path, overrides: tuple[str, ...], how: HowToRun) -> None:
    """Train the student of RECIPE, a TOML file or the folder of a run.

    OVERRIDES are key=value pairs such as rollout.temperature=0.7. A run that was stopped resumes from its newest
    checkpoint when it is started again.
    """
    train_to_end(recipe, overrides, how)


@click.command(short_help="Fine-tune the student on data sets.")
@runs_a_recipe
def sft(recipe: Path, overrides: tuple[str, ...], how: HowToRun) -> None:
    """Fine-tune the student of RECIPE, a TOML file or the folder of a run, on the data sets of its rollout.sources.

    The loss is the forward KL to the tokens of the completions. No teacher is loaded. The run is called as the recipe,
    and -sft. To distil what came of it:

    \b
      limbeck sft RECIPE
      limbeck train RECIPE student.model=runs/NAME-sft/model
    """
    train_to_end(recipe, overrides, how, supervised=True)


@click.command(short_help="Train with agents that run elsewhere.")
@runs_a_recipe
@click.option("--host", help="Address to listen on.  [default: the recipe's, or 127.0.0.1: this machine only]")
@click.option("--port", type=click.IntRange(0, 65535), help="0: any free port.  [default: the recipe's, or 8600]")
@click.option("--token-env", help="Environment variable with the bearer token of requests for work.")
def gateway(
    recipe: Path, overrides: tuple[str, ...], how: HowToRun, host: str | None, port: int | None, token_env: str | None
) -> None:
    """Train the student of RECIPE, a TOML file or the folder of a run, with agents that run elsewhere.

    They ask for work with POST /sessions, talk to the student at the address in the answer, and end with
    POST /sessions/ID/end. Work that nobody asks for waits. Needs the extra `gateway`.
    """
    given = {"kind": "gateway", "host": host, "port": port, "token_env": token_env}
    settings = [f"environment.{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    train_to_end(recipe, [*overrides, *settings], how)
