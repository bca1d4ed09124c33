"""The command line. Imports nothing heavy until a command runs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from limbeck import __version__
from limbeck.cli.audit import audit
from limbeck.cli.check import check
from limbeck.cli.evaluate import evaluate
from limbeck.cli.export import export
from limbeck.cli.foreign import foreign_warnings_aside
from limbeck.cli.recipes import completion, init, recipes
from limbeck.cli.streams import LastingRaw, exit_status, lasting_streams
from limbeck.cli.train import OVERRIDES, gateway, sft, train
from limbeck.cli.wire import bake, serve
from limbeck.errors import LimbeckError
from limbeck.formatting import counted
from limbeck.sanitize import printable
from limbeck.training.interruption import Interrupted, StopSignals

PRINTED = (  # commands whose result is what they print
    "eval", "check", "audit", "demo", "version", "recipes", "completion",
)  # fmt: skip
SECTIONS = {  # of `limbeck --help`, in the order in which a newcomer needs them
    "To begin": ("demo", "recipes", "init"),
    "Training": ("train", "sft", "gateway", "eval", "export"),
    "Teachers": ("check", "serve", "bake"),
    "Looking": ("view", "report", "audit"),
    "Other": ("completion", "version"),
}


class _Commands(click.Group):
    stdout: LastingRaw | None = None
    """Prints a `LimbeckError` as one message and exits 1. Anything else is a bug and shows its trace.

    A signal is one line and 129, 130 or 143, from the first import on. A stdout that takes nothing ends no command;
    one whose result is what it prints then exits 141 (a closed pipe) or 1.
    """

    def main(self, *arguments: Any, **more: Any) -> Any:
        with lasting_streams() as self.stdout:
            return super().main(*arguments, **more)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(len(name) for name in self.commands)
        for title, names in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:<{width}}", self.commands[name].get_short_help_str(70)) for name in names])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with foreign_warnings_aside() as foreign, StopSignals():
                result = super().invoke(ctx)
        except LimbeckError as error:
            click.secho(f"error: {_message(error)}", fg="red", err=True)
            ctx.exit(1)
        except MemoryError:
            click.secho(
                "error: out of memory. Lower rollout.prompts_per_step or learner.micro_batch_tokens, or use a "
                "smaller model.",
                fg="red",
                err=True,
            )
            ctx.exit(1)
        except Interrupted as stopped:
            click.secho(_where_it_stopped(stopped), fg="yellow", err=True)
            ctx.exit(stopped.exit_code)
        finally:
            if foreign:
                hidden = f"{counted(len(foreign), 'warning')} of other packages not shown"
                click.secho(f"{hidden}: PYTHONWARNINGS=default shows them", dim=True, err=True)
        if self.stdout is not None and ctx.invoked_subcommand in PRINTED and (status := exit_status(self.stdout)):
            ctx.exit(status)
        return result


def _message(error: BaseException) -> str:
    """The error and its notes; they may quote a server or a data set."""
    return printable("\n".join([str(error), *getattr(error, "__notes__", ())]))


def _where_it_stopped(stopped: Interrupted) -> str:
    notes = "".join(f"\n{printable(note)}" for note in getattr(stopped, "__notes__", ()))
    if stopped.folder is None:
        return f"{stopped}{notes}"
    if not stopped.step:
        return f"{stopped}{notes}" if notes else f"{stopped}: no update was made, there is nothing to keep"
    return (
        f"{stopped} after step {stopped.step}: the checkpoint is in {stopped.folder / 'checkpoints'}.{notes}\n"
        f"To go on from there:  limbeck train {shlex.quote(str(stopped.folder / 'recipe.toml'))}"
    )


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="limbeck %(version)s")
def main() -> None:
    """On-policy distillation: student and teacher are proven to be at the same temperature.

    \b
    Examples:
      limbeck demo
      limbeck recipes
      limbeck init demo
      limbeck check recipes/demo.toml
      limbeck check --teacher sglang=http://host:30000 --temperature 0.7
      limbeck train recipes/demo.toml rollout.temperature=0.7 steps=100
      limbeck sft RECIPE
      limbeck gateway RECIPE --port 8600
      limbeck eval recipes/demo.toml --compare
      limbeck view runs/demo
      limbeck serve MODEL
      limbeck bake MODEL OUT --temperature 0.7
      limbeck export runs/demo OUT --dtype bfloat16
      limbeck audit rollouts.parquet --student DIR --teacher DIR --temperature 0.7
    """


@main.command(short_help="Distil a tiny model on this machine, in minutes.")
@OVERRIDES
@click.option("--fresh", is_flag=True, help="Delete the run's folder first, whatever run is in it.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def demo(overrides: tuple[str, ...], fresh: bool, as_json: bool) -> None:
    """Distil a tiny student from a tiny teacher on three-digit addition: minutes on two CPU cores.

    A demo that was stopped goes on where it was; one that is finished is made again. A run of another recipe in its
    folder, runs/demo, stays as it is: give this one another name=..., or --fresh.
    """
    from limbeck.demo.run import run_demo

    run_demo(overrides, as_json, fresh)


main.add_command(recipes)
main.add_command(init)
main.add_command(evaluate)
main.add_command(train)
main.add_command(sft)
main.add_command(gateway)
main.add_command(check)
main.add_command(serve)
main.add_command(bake)
main.add_command(export)
main.add_command(audit)
main.add_command(completion)


@main.command(short_help="Open a page on a run, in progress or finished.")
@click.argument("path", type=click.Path(path_type=Path), default="runs")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on. The default is for this machine only."
)
@click.option("--port", type=click.IntRange(0, 65535), default=8642, show_default=True, help="0: any free port.")
@click.option("--no-open", is_flag=True, help="Do not open a browser window.")
def view(path: Path, host: str, port: int, no_open: bool) -> None:
    """Open a page on the run in PATH, or on all runs in it: curves, tokens, where student and teacher disagree.

    The page reads files only, and follows a run that is in progress.
    """
    from limbeck.view.runs import Runs
    from limbeck.view.server import serve
    from limbeck.wire.hosts import is_loopback

    if not is_loopback(host):
        click.secho(f"anyone who can reach {host} can read these runs", fg="yellow", err=True)

    def ready(address: str) -> None:
        click.echo(f"{path} at {address}  (Ctrl-C stops)")
        if not Runs(path).all():
            click.echo(f"no run in {path} yet: runs appear here as they begin")

    serve(path, host, port, not no_open, ready)


@main.command(short_help="Write a run's page as one HTML file.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default="report.html",
    show_default=True,
    help="The file to write.",
)
@click.option("--rollouts", default=200, show_default=True, help="How many rollouts to include with all their tokens.")
@click.option(
    "--png",
    type=click.Path(file_okay=False, path_type=Path),
    help="Also write the curves as PNG files to this folder. Needs the extra `report`.",
)
def report(path: Path, output: Path, rollouts: int, png: Path | None) -> None:
    """Write the page on the run or runs in PATH as one HTML file, which opens without a network."""
    from limbeck.view.plots import left_over, require_matplotlib, write_plots
    from limbeck.view.report import write_report

    if png is not None:  # before anything is written
        require_matplotlib()
    write_report(path, output, rollouts)
    click.echo(f"{output}  ({output.stat().st_size / 2**20:.1f} MB)")
    if png is not None:
        written = write_plots(path, png)
        for file in written:
            click.echo(str(file))
        if old := left_over(png, written):
            names = ", ".join(file.name for file in old)
            click.secho(f"{png} also has pictures of an earlier report: {names}", fg="yellow", err=True)


@main.command(short_help="Print the versions of Limbeck, torch and transformers.")
def version() -> None:
    """Print Limbeck's version, and those of torch and transformers."""
    from importlib.metadata import version as installed

    click.echo(f"limbeck {__version__}  torch {installed('torch')}  transformers {installed('transformers')}")


if __name__ == "__main__":
    sys.exit(main())
