"""The peer's own virtual environment: TRL 1.16.0 on the torch and transformers of `constraints.txt`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TRL = "trl==1.16.0"
SHARED = ("torch", "transformers")  # both sides run the same kernels
DEFAULT = Path.home() / ".cache" / "limbeck" / "trl-1.16"


def peer_python(folder: Path) -> Path:
    """The environment's interpreter; the environment is made where it is not there (1 GB, minutes)."""
    python = folder / "bin" / "python"
    if (folder / "ready").exists():
        return python
    print(f"{folder}: making the environment of {TRL}", file=sys.stderr)
    constraints = ROOT / "constraints.txt"
    pinned = [line for line in constraints.read_text().splitlines() if line.partition("==")[0] in SHARED]
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--constraint", constraints, TRL, *pinned], check=True, stdout=sys.stderr)
    (folder / "ready").touch()
    return python
