"""The command line. Imports nothing heavy until a command runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import click

from limbeck import __version__
from limbeck.cli.export import export
from limbeck.cli.wire import bake, serve
from limbeck.errors import ContractError, LimbeckError
from limbeck.sanitize import printable

RECIPE = click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path))
OVERRIDES = click.argument("overrides", nargs=-1)


class _Commands(click.Group):
    """Prints a `LimbeckError` as one message and exits 1; anything else is a bug and shows its trace."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LimbeckError as error:
            click.secho(f"error: {printable(str(error))}", fg="red", err=True)  # it may quote a server or a data set
            ctx.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """On-policy distillation with student and teacher provably at the same temperature.

    \b
    limbeck demo                        distil a tiny model, in minutes, on this machine
    limbeck check recipes/demo.toml     prove everything before a run
    limbeck check --teacher sglang=http://host:30000 --temperature 0.7
    limbeck serve MODEL                 a scoring server, exact at any temperature
    limbeck bake MODEL --temperature 0.7 OUT
    limbeck train recipes/demo.toml rollout.temperature=0.7 steps=100
    limbeck eval recipes/demo.toml --model runs/demo/model
    limbeck view runs/demo              look at it, while it runs or after
    limbeck export runs/demo OUT --dtype bfloat16
    """


@main.command()
@RECIPE
@OVERRIDES
@click.option("--fresh", is_flag=True, help="Remove the run's folder first, instead of resuming.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print the lines of metrics.jsonl.")
def train(recipe: Path, overrides: tuple[str, ...], fresh: bool, quiet: bool, as_json: bool) -> None:
    """Train by RECIPE, a TOML file; OVERRIDES are key=value pairs such as rollout.temperature=0.7.

    A run that was stopped, however it was stopped, goes on from its newest checkpoint.
    """
    from limbeck.config.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)  # a mistake in it is told before anything heavy is imported
    from limbeck import api
    from limbeck.trackers.console import make_console

    console = make_console(loaded.name, quiet, as_json)
    result = api.train(loaded, fresh=fresh, observers=[console] if console else [])
    if not quiet and not as_json:
        click.echo(f"finished: {result.folder / 'model'}")


@main.command("eval")
@RECIPE
@OVERRIDES
@click.option("--model", type=click.Path(path_type=Path), help="Evaluate this model folder, such as a checkpoint's.")
@click.option("--teacher", is_flag=True, help="Evaluate the recipe's teacher on the same prompts.")
@click.option("--answers", default=0, show_default=True, help="Print this many answers.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(
    recipe: Path, overrides: tuple[str, ...], model: Path | None, teacher: bool, answers: int, as_json: bool
) -> None:
    """Accuracy with a confidence interval, pass@k, and reverse KL on fresh samples, without training."""
    if teacher and model is not None:
        raise click.UsageError("give --model FOLDER or --teacher, not both: each says which model is evaluated")
    from limbeck.config.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    from limbeck import api
    from limbeck.cli.evaluation_view import named_values, show_evaluation

    role: Literal["student", "teacher"] = "teacher" if teacher else "student"
    result = api.evaluate(loaded, model=model, of=role)
    if as_json:
        click.echo(json.dumps(named_values(result, role), allow_nan=False))
        return
    show_evaluation(result, answers, role)


@main.command()
@click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path), required=False)
@OVERRIDES
@click.option("--teacher", help="KIND=URL of a server to check without a recipe: sglang=, vllm= or limbeck=http://...")
@click.option("--temperature", type=float, help="Rollout temperature, with --teacher; 1 where not given.")
@click.option(
    "--method",
    "temperature_method",
    type=click.Choice(["native", "baked", "rescale"]),
    help="Prove this way alone of having the teacher at --temperature.",
)
@click.option("--baked", type=click.Path(), help="Folder of the baked checkpoint the server holds, with --teacher.")
@click.option(
    "--head", type=click.Path(), help="Folder of the teacher's model, to prove hidden states, with --teacher."
)
@click.option("--tokenizer", help="The student's tokenizer, to compare with the server's, with --teacher.")
@click.option(
    "--vocabulary", type=click.IntRange(min=1), help="Size of the teacher's output head, or more, with --teacher."
)
@click.option("--top-logprobs", type=click.IntRange(min=1), help="Top tokens a position for rescaling, with --teacher.")
@click.option("--token-env", help="Environment variable with the bearer token, with --teacher.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(
    recipe: Path | None,
    overrides: tuple[str, ...],
    teacher: str | None,
    as_json: bool,
    **server: Any,
) -> None:
    """Prove the teacher's contract without training: of a RECIPE, or of a server given with --teacher.

    Exits 0 when every probe holds, 1 when one does not.
    """
    from limbeck.cli.check_view import show_results

    given = {name: value for name, value in server.items() if value is not None}
    if (teacher is None) == (recipe is None):
        raise click.UsageError("give a RECIPE, or a server with --teacher KIND=URL, and not both")
    if recipe is not None and given:
        raise click.UsageError(f"{_options(given)} goes with --teacher; a RECIPE says it in a key=value override")
    try:
        if teacher is not None:
            from limbeck.contract.check import check_teacher

            verdicts = check_teacher(teacher, **given)
        else:
            assert recipe is not None
            from limbeck.config.recipe import load_recipe

            loaded = load_recipe(recipe, overrides)
            from limbeck import api

            verdicts = api.check(loaded)
    except LimbeckError as error:
        show_results(error.verdicts if isinstance(error, ContractError) else (), as_json, str(error))
        raise
    show_results(verdicts, as_json)


def _options(given: Mapping[str, Any]) -> str:
    names = {"temperature_method": "method"}
    return ", ".join(f"--{names.get(name, name).replace('_', '-')}" for name in given)


@main.command()
@OVERRIDES
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object.")
def demo(overrides: tuple[str, ...], as_json: bool) -> None:
    """Distil a tiny student from a tiny teacher on three-digit addition, in minutes on two cores."""
    from limbeck.demo.run import run_demo

    run_demo(overrides, as_json)


main.add_command(serve)
main.add_command(bake)
main.add_command(export)


@main.command()
@click.argument("path", type=click.Path(path_type=Path), default="runs")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen at; the default is this machine."
)
@click.option("--port", default=8642, show_default=True, help="0 takes a free one.")
@click.option("--no-open", is_flag=True, help="Do not open a browser.")
def view(path: Path, host: str, port: int, no_open: bool) -> None:
    """Look at the run in PATH, or at all runs in it: curves, tokens, where student and teacher disagree.

    The page reads files only and follows a run that goes on. (Extra `view`.)
    """
    from limbeck.view.server import LOOPBACK, serve

    if host not in LOOPBACK:
        click.secho(f"anyone who can reach {host} can read these runs", fg="yellow", err=True)
    serve(path, host, port, not no_open, lambda address: click.echo(f"{path} at {address}  (Ctrl-C stops)"))


@main.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), default="report.html", show_default=True
)
@click.option("--rollouts", default=200, show_default=True, help="How many rollouts go in with all their tokens.")
@click.option("--png", type=click.Path(file_okay=False, path_type=Path), help="Also write plots to this folder.")
def report(path: Path, output: Path, rollouts: int, png: Path | None) -> None:
    """The page of the run or runs in PATH as one file, which opens without a network."""
    from limbeck.view.report import write_report

    write_report(path, output, rollouts)
    click.echo(f"{output}  ({output.stat().st_size / 2**20:.1f} MB)")
    if png is not None:
        from limbeck.view.plots import write_plots

        for file in write_plots(path, png):
            click.echo(str(file))


@main.command()
def version() -> None:
    """Print Limbeck's version, and those of torch and transformers."""
    from importlib.metadata import version as installed

    click.echo(f"limbeck {__version__}  torch {installed('torch')}  transformers {installed('transformers')}")


if __name__ == "__main__":
    sys.exit(main())
