"""`limbeck recipes`, `limbeck init` and `limbeck completion`: what helps to begin."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class


def complete_recipe(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from limbeck.config.shipped import shipped_recipes

    return [
        CompletionItem(recipe.name, help=recipe.about)
        for recipe in shipped_recipes()
        if recipe.name.startswith(incomplete)
    ]


def complete_override(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The keys of recipes, a table at a time: `roll` becomes `rollout.`, and that its keys. `NAME` is any name."""
    from limbeck.config.recipe import dotted_keys

    *above, begun = incomplete.split(".")
    keys = [key.split(".") for key in dotted_keys()]
    below = [
        key
        for key in keys
        if len(key) > len(above)
        and all(known in (given, "NAME") for known, given in zip(key, above, strict=False))
        and key[len(above)].startswith(begun)
    ]
    found = dict.fromkeys(key[len(above)] for key in below if len(key) == len(above) + 1)
    tables = {key[len(above)] for key in below if len(key) > len(above) + 1}
    return [".".join([*above, name]) + ("." if name in tables else "=") for name in found]


@click.command(short_help="List the recipes that ship with Limbeck.")
def recipes() -> None:
    """List the recipes that ship with Limbeck, with a line on each.

    `limbeck init NAME` copies one to here.
    """
    from limbeck.config.shipped import shipped_recipes

    shipped = shipped_recipes()
    width = max(len(recipe.name) for recipe in shipped)
    for recipe in shipped:
        click.echo(f"{recipe.name:<{width}}  {recipe.about}")


@click.command(short_help="Copy a shipped recipe to here.")
@click.argument("name", shell_complete=complete_recipe)
def init(name: str) -> None:
    """Copy the shipped recipe NAME to recipes/NAME.toml, with its comments and the files beside it that it names.

    `limbeck recipes` lists the names. A file that is there already and differs is left as it is, with an error.
    """
    from limbeck.config.shipped import copy_recipe, shipped_recipe

    copies = copy_recipe(name, Path())
    for path, is_new in copies.items():
        click.echo(f"wrote {path}" if is_new else f"{path} is there already, and the same")
    click.echo("\n".join(["", *shipped_recipe(name).notes, ""]))
    recipe = next(iter(copies))
    click.echo(f"To prove and to run it:\n  limbeck check {recipe}\n  limbeck train {recipe}")


@click.command(short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that makes SHELL complete commands, options, files, recipes and keys.

    \b
    bash: echo 'eval "$(limbeck completion bash)"' >> ~/.bashrc
    zsh:  echo 'eval "$(limbeck completion zsh)"' >> ~/.zshrc
    fish: limbeck completion fish > ~/.config/fish/completions/limbeck.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    root = click.get_current_context().find_root()
    click.echo(kind(root.command, {}, "limbeck", "_LIMBECK_COMPLETE").source())
