"""`limbeck export`. Imports nothing heavy until it runs."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Write a run's newest weights as a model folder.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Dtype of the weights in OUT. Training is in float32.",
)
@click.option("--adapter", is_flag=True, help="Write only the LoRA adapter, in peft's format, instead of merging it.")
def export(run: Path, out: Path, dtype: str, adapter: bool) -> None:
    """Write the newest weights of RUN to OUT, an ordinary Hugging Face folder with adapters merged in.

    RUN is a run's folder, or one of its checkpoints.
    """
    from limbeck.learners.export import export as write

    source = write(run, out, dtype, adapter)
    click.echo(f"wrote {out}: the {'adapter' if adapter else 'model'} of {source}, in {dtype}")
