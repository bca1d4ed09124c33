"""Trains by two recipes in a process of its own, and prints the bytes that the second took beyond what was there.

python -m tests.assemble.sized_process FIRST SECOND
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path


def main() -> None:
    from limbeck import api

    api.train(sys.argv[1])  # all that a run imports and compiles
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    api.train(sys.argv[2])
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    print(json.dumps({"bytes": peak - before}))


if __name__ == "__main__":
    main()
