"""Write the table of docs/concepts/trust.md from the last run of the chaos suite.

make test-chaos
python scripts/make_trust.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the table belongs to the tests

from tests.chaos import table  # noqa: E402


def main() -> None:
    if not table.FILE.is_file():
        sys.exit(f"{table.FILE} is missing: run `make test-chaos` first")
    found = json.loads(table.FILE.read_text(encoding="utf-8"))
    table.PAGE.write_text(table.with_table(table.PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main()
