"""Write docs/reference/architectures.md from a sweep over all that transformers can configure, in some minutes.

python scripts/make_architectures.py
python scripts/make_architectures.py --check           # only says whether the page is up to date
python scripts/make_architectures.py qwen3 phi3        # only prints what becomes of these
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "reference" / "architectures.md"
sys.path.insert(0, str(ROOT))  # the sweep belongs to the tests

from tests.models import sweep, tiny_configs  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("names", nargs="*", help="model types, as transformers calls them")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    verdicts = []
    for name in arguments.names or tiny_configs.names():
        verdicts.append(verdict := sweep.measure(name))
        how = f"update {verdict.update}, decoding {verdict.decoding}" if verdict.update else ""
        print(f"{name:30} {how} {verdict.refused} {'WRONG ' + verdict.wrong if verdict.wrong else ''}", file=sys.stderr)
    if arguments.names:
        return
    page = sweep.page(verdicts)
    if arguments.check:
        sys.exit(0 if TARGET.read_text() == page else f"{TARGET} is out of date: run {sys.argv[0]}")
    TARGET.write_text(page)


if __name__ == "__main__":
    main()
