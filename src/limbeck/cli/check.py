"""`limbeck check`. Imports nothing heavy until it runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from limbeck.cli.recipes import complete_override
from limbeck.errors import ContractError, LimbeckError


@click.command(short_help="Prove what the teacher answers, without training.")
@click.argument("recipe", type=click.Path(path_type=Path), required=False)
@click.argument("overrides", nargs=-1, shell_complete=complete_override)
@click.option("--teacher", help="Check this server, without a recipe: KIND=URL, where KIND is sglang, vllm or limbeck.")
@click.option("--temperature", type=float, help="The rollout temperature, with --teacher.  [default: 1]")
@click.option(
    "--method",
    "temperature_method",
    type=click.Choice(["native", "baked", "rescale"]),
    help="Try only this way to obtain scores at --temperature, with --teacher.",
)
@click.option(
    "--baked", type=click.Path(), help="Folder of the baked checkpoint that the server has loaded, with --teacher."
)
@click.option(
    "--head",
    type=click.Path(),
    help="Folder of the teacher's model, for a server that returns hidden states, with --teacher.",
)
@click.option(
    "--tokenizer", help="The student's tokenizer, folder or hub name, to compare with the server's, with --teacher."
)
@click.option(
    "--vocabulary",
    type=click.IntRange(min=1),
    help="Rows of the teacher's output head, with --teacher. All ids below are asked about.",
)
@click.option(
    "--trust-start",
    is_flag=True,
    default=None,
    help="Accept a model whose answers do not show that nothing is put before a text, with --teacher.",
)
@click.option(
    "--top-logprobs", type=click.IntRange(min=1), help="Top log-probs to ask for at each position, with --teacher."
)
@click.option("--token-env", help="Environment variable that holds the bearer token, with --teacher.")
@click.option(
    "--prompt-tokens",
    type=click.IntRange(min=1),
    help="Tokens of the longest prompt, by which memory is counted.  [default: 512, or what the context leaves]",
)
@click.option("--size-only", is_flag=True, help="Print what the run takes, load nothing, and prove nothing.")
@click.option("--anyway", is_flag=True, help="Go on where this machine is certainly too small for the run.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(
    recipe: Path | None,
    overrides: tuple[str, ...],
    teacher: str | None,
    prompt_tokens: int | None,
    size_only: bool,
    anyway: bool,
    as_json: bool,
    **server: Any,
) -> None:
    """Prove that the teacher of RECIPE scores what it is asked, at the rollout temperature, without training.

    First, before anything is loaded, it prints the memory and disk that the run takes, and what of it does not fit.
    Give a RECIPE, or a server with --teacher. The exit status is 0 when every probe passes, and 1 otherwise, also where
    this machine is certainly too small. With --size-only it is 0 whatever the size.
    """
    from limbeck.cli.check_view import show_results

    given = {name: value for name, value in server.items() if value is not None}
    if (teacher is None) == (recipe is None):
        raise click.UsageError("give a RECIPE, or a server with --teacher KIND=URL, and not both")
    if teacher is not None and (size_only or anyway or prompt_tokens):
        raise click.UsageError("--prompt-tokens, --size-only and --anyway go with a RECIPE")
    if recipe is not None and given:
        raise click.UsageError(f"{_options(given)} goes with --teacher; with a RECIPE use a key=value override")
    sizing: Mapping[str, Any] | None = None
    try:
        if teacher is not None:
            from limbeck.contract.check import check_teacher

            results = check_teacher(teacher, **given)
        else:
            assert recipe is not None
            from limbeck.config.extras import require_extras
            from limbeck.config.recipe import load_recipe

            loaded = load_recipe(recipe, overrides)
            if not size_only:
                require_extras(loaded)
            from limbeck import api
            from limbeck.cli.sizing_view import as_table, show_sizing

            sized = api.size(loaded, prompt_tokens=prompt_tokens)
            sizing = as_table(sized)
            if not as_json:
                show_sizing(sized)
            results = () if size_only else api.check(loaded, anyway=anyway)
    except LimbeckError as error:
        show_results(error.results if isinstance(error, ContractError) else (), as_json, str(error), sizing)
        raise
    show_results(results, as_json, sizing=sizing)


def _options(given: Mapping[str, Any]) -> str:
    names = {"temperature_method": "method"}
    return ", ".join(f"--{names.get(name, name).replace('_', '-')}" for name in given)
