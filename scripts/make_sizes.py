"""Write the tables of docs/guides/cluster.md. A test checks that they are up to date."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the tables belong to the tests

from tests.assemble import sizes_page  # noqa: E402


def main() -> None:
    sizes_page.PAGE.write_text(sizes_page.page(sizes_page.PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
