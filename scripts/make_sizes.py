"""Write the tables of docs/guides/cluster.md and limits.md. A test checks that they are up to date."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the tables belong to the tests

from tests.assemble import sizes_page  # noqa: E402


def main() -> None:
    for page, made in ((sizes_page.PAGE, sizes_page.page), (sizes_page.LIMITS, sizes_page.limits)):
        page.write_text(made(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
