"""`limbeck serve` and `limbeck bake`: a teacher for other machines. Imports nothing heavy until one runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

FC = TypeVar("FC", bound=Callable[..., Any] | click.Command)
AT_LEAST_ONE = click.IntRange(min=1)


def _renamed(old: str, new: str, is_flag: bool = False) -> Callable[[FC], FC]:
    """An option of a former name, which no help shows: an error that gives the new one."""

    def refuse(context: click.Context, parameter: click.Parameter, given: object) -> None:
        if given:
            raise click.UsageError(f"{old} is now called {new}.", context)

    return click.option(
        old, hidden=True, expose_value=False, callback=refuse, help=f"The former name of {new}.", is_flag=is_flag
    )


@click.command(short_help="Serve a model as a teacher over HTTP.")
@click.argument("model")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on. The default is for this machine only."
)
@click.option("--port", type=click.IntRange(0, 65535), default=30000, show_default=True, help="0: any free port.")
@click.option(
    "--allow-host",
    "allow_hosts",
    multiple=True,
    metavar="NAME",
    help="Another name that clients call this server by, where it has no --token-env. May be repeated.",
)
@click.option(
    "--temperature",
    type=float,
    help="Temperature for requests that name none, or 0 as miles does. Another one than this is refused.  "
    "[absent: 1, and each request's own]",
)
@click.option(
    "--ignore-sampling-temperature",
    is_flag=True,
    help="The sampling temperature of a request means nothing, such as an older hook's 1: score at --temperature.",
)
@click.option("--name", default="teacher", show_default=True, help="The model's name in /v1/models.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Dtype of the weights.",
)
@click.option("--device", default="auto", show_default=True, help="Such as cuda:0. auto: a GPU if there is one.")
@click.option(
    "--batch-invariant",
    is_flag=True,
    help="Score each sequence on its own: slower, and equal to the last bit whatever else is asked.",
)
@_renamed("--alone", "--batch-invariant", is_flag=True)
@click.option("--token-env", help="Environment variable that holds the bearer token clients must send.")
@click.option(
    "--max-queue",
    type=AT_LEAST_ONE,
    default=1024,
    show_default=True,
    help="Sequences that may wait. Further requests get status 429.",
)
@click.option(
    "--batch-tokens", type=AT_LEAST_ONE, default=8192, show_default=True, help="Tokens of sequences scored at once."
)
@click.option(
    "--prefix-cache-mb",
    type=click.IntRange(min=0),
    default=512,
    show_default=True,
    help="Memory for prompts that return, in MB. 0: each sequence is computed from its beginning.",
)
@_renamed("--queue", "--max-queue")
@_renamed("--batch", "--batch-tokens, a number of tokens")
@click.option("--body-mb", type=AT_LEAST_ONE, default=16, show_default=True, help="Largest request body, in MB.")
@click.option("--answer-mb", type=AT_LEAST_ONE, default=64, show_default=True, help="Largest answer, in MB.")
@click.option(
    "--max-top-k", type=AT_LEAST_ONE, default=1024, show_default=True, help="Most top log-probs at a position."
)
@click.option("--max-length", type=AT_LEAST_ONE, help="Longest sequence in tokens.  [default: the model's context]")
def serve(
    model: str, host: str, port: int, allow_hosts: tuple[str, ...], dtype: Any, device: str, batch_invariant: bool,
    **limits: Any,
) -> None:  # fmt: skip
    """Serve MODEL, a folder or hub name, as a teacher over HTTP: exact scores at any temperature.

    Answers SGLang's /generate, vLLM's /v1/completions and a binary route of Limbeck's own. Needs the extra `serve`.
    """
    from limbeck.errors import RecipeError
    from limbeck.serve.main import require_packages
    from limbeck.serve.main import serve as run
    from limbeck.serve.settings import COLDEST, HOTTEST, ServeSettings
    from limbeck.wire.hosts import is_loopback

    temperature = limits["temperature"]
    if temperature is not None and not COLDEST <= temperature <= HOTTEST:
        raise RecipeError(f"--temperature must be a number from {COLDEST:g} to {HOTTEST:g}, got {temperature:g}")
    if limits["ignore_sampling_temperature"] and temperature is None:
        raise RecipeError("--ignore-sampling-temperature leaves none to score at: give --temperature, the rollout's")
    if not is_loopback(host) and limits["token_env"] is None:
        click.secho(f"warning: {host} can be reached by others, and no --token-env is set", fg="yellow", err=True)
    require_packages()
    click.echo(f"loading {model}", err=True)

    def ready(address: str) -> None:
        at = "any temperature" if temperature is None else f"temperature {temperature:g} unless a request names another"
        click.echo(f"serving {model} on {address} at {at}  (Ctrl-C stops)", err=True)

    run(model, ServeSettings(**limits), host, port, dtype, device, batch_invariant, allow_hosts, ready)


@click.command(short_help="Write a checkpoint that any stock server scores at T.")
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--temperature", type=float, required=True, help="The temperature at which a server of OUT scores and samples."
)
def bake(model: str, out: Path, temperature: float) -> None:
    """Write OUT, a copy of MODEL that any stock server scores at --temperature.

    The final norm is divided by the temperature, so that the server's answer at temperature 1 is the one at
    --temperature. A probe file with reference scores is written beside it.
    """
    from limbeck.contract.bake import bake as run

    probe = run(model, temperature, out)
    click.echo(f"wrote {out}: {', '.join(probe.tensors)} divided by {temperature:g}, in float32")
    for kind, error in probe.errors.items():
        click.echo(
            f"  a server that loads it in {kind} is off by {error['mean']:.1e} nats a token on average, "
            f"{error['max']:.1e} at most, on the probe file"
        )
    click.echo("  serve it in float32; it also samples at this temperature")
    click.echo(f'  in the recipe: teacher.baked = "{out}"')
