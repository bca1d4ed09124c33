"""`limbeck eval`. Imports nothing heavy until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from limbeck.cli.recipes import complete_override

if TYPE_CHECKING:
    from limbeck.config.recipe import Recipe


@click.command("eval", short_help="Evaluate a model, without training.")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, shell_complete=complete_override)
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="Evaluate the model in this folder, such as a checkpoint's, in place of the student.",
)
@click.option("--teacher", is_flag=True, help="Evaluate the recipe's teacher, on the same prompts.")
@click.option(
    "--compare",
    is_flag=True,
    help="One table of the student before, the student after (the run's newest model, or --model), and the teacher.",
)
@click.option(
    "--answers",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Print this many of the responses.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(
    recipe: Path,
    overrides: tuple[str, ...],
    model: Path | None,
    teacher: bool,
    compare: bool,
    answers: int,
    as_json: bool,
) -> None:
    """Evaluate a model on the held-out prompts of RECIPE, a TOML file or the folder of a run, without training.

    The model is the recipe's student as it was before training, or that of --model or --teacher.

    Prints the mean reward with its 95% interval, pass@k, and the reverse KL to the teacher on fresh samples.
    """
    if teacher and model is not None:
        raise click.UsageError("give --model FOLDER or --teacher, not both: each says which model is evaluated")
    if compare and (others := [name for name, given in (("--teacher", teacher), ("--answers", answers)) if given]):
        raise click.UsageError(
            f"--compare evaluates the teacher too, and prints no answers: leave out {' and '.join(others)}"
        )
    from limbeck.config.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    if compare:
        _compare(loaded, model, as_json)
        return
    from limbeck import api
    from limbeck.cli.evaluation_view import named_values, show_evaluation
    from limbeck.training.finite import to_json

    role: Literal["student", "teacher"] = "teacher" if teacher else "student"
    result = api.evaluate(loaded, model=model, of=role)
    if as_json:
        click.echo(to_json(named_values(result, role), f"the evaluation of the {role}"))
        return
    show_evaluation(result, answers, role)


def _compare(recipe: Recipe, model: Path | None, as_json: bool) -> None:
    from limbeck import api
    from limbeck.cli.evaluation_view import named_values
    from limbeck.trackers.ending import comparison
    from limbeck.training.finite import to_json

    found = {
        name: named_values(result, "teacher" if name == "teacher" else "student")
        for name, result in api.compare(recipe, model=model).items()
    }
    if as_json:
        click.echo(to_json({name.replace(" ", "_"): values for name, values in found.items()}, "the comparison"))
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print(comparison(found))
    if "teacher" not in found:
        console.print(f"A teacher of kind {recipe.teacher.kind!r} scores but does not sample here: it has no row.")
