"""A page of the documentation that a script writes from the code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path


def write_page(target: Path, page: Callable[[], str], about: str | None) -> None:
    """Write `page()` to `target`, by a script whose docstring is `about`. With `--check`, exit 1 where it differs."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        sys.exit(0 if target.read_text() == page() else f"{target} is out of date: run {sys.argv[0]}")
    target.write_text(page())
