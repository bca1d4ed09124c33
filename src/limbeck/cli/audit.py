"""`limbeck audit`: what another trainer really did. Imports nothing heavy until it runs."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command(short_help="Say what is wrong in another trainer's recorded rollouts.")
@click.argument("dump", type=click.Path(path_type=Path))
@click.option(
    "--student",
    required=True,
    help="Folder or hub name of the very weights that sampled: in training they move with every update.",
)
@click.option(
    "--teacher",
    required=True,
    help="Folder or hub name of the teacher, or a server: a URL of `limbeck serve`, sglang=URL or vllm=URL.",
)
@click.option("--temperature", type=float, required=True, help="The rollout temperature that was meant.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def audit(dump: Path, student: str, teacher: str, temperature: float, as_json: bool) -> None:
    """Recompute both sides of DUMP and say what is wrong, and since when.

    DUMP is a file or folder of rollouts: a run of ours (its folder, or RUN/rollouts), the neutral schema of the guide
    *Auditing a run*, or what slime, miles, verl, TRL and prime-rl write. The exit status is 0 where something was
    checked and there is no finding, else 1.
    """
    from limbeck.audit.report import page
    from limbeck.audit.run import audit as run
    from limbeck.sanitize import printable

    report = run(dump, student, teacher, temperature)
    click.echo(json.dumps(report.as_json(), allow_nan=False) if as_json else printable(page(report)))
    if report.findings or not report.checked:
        click.get_current_context().exit(1)
