"""How long the run page takes to open 10,000 steps and 5,000 recorded rollouts, in a headless Chromium.

    python -m benchmarks.view        # extras: browser; packages: chromium, chromium-driver

Each repeat is a new server, without anything read, and a new visit. "curves": from the address to the
drawn charts; "rollouts": from the press on the tab to the list and a response. "slowest_frame": while a response of
8,000 tokens is scrolled, in seconds.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

from tests.browser.page import Page, chromium, serving
from tests.view import made

STEPS, EVERY, EACH = 10_000, 16, 8
REPEATS = 5
SCROLL = """
  const done = arguments[0];
  let frames = 0, slowest = 0, before = performance.now();
  const step = (now) => {
    if (frames > 5) slowest = Math.max(slowest, now - before);
    before = now;
    scrollBy(0, 400);
    if (++frames < 60) requestAnimationFrame(step); else done(slowest);
  };
  requestAnimationFrame(step);
"""


def main() -> None:
    """Print the median seconds of each part, and those of every repeat, as one JSON line."""
    with tempfile.TemporaryDirectory() as folder, chromium() as driver:
        run = Path(folder) / "big"
        made.write_metrics(run, STEPS)
        made.write_rollout_files(run, range(EVERY, STEPS + 1, EVERY), each=EACH)
        long = Path(folder) / "long"
        made.write_metrics(long, 3)
        made.write_rollout_files(long, range(1, 2), each=2, length=8000)
        page = Page(driver)
        seconds: dict[str, list[float]] = {"curves": [], "rollouts": [], "slowest_frame": []}
        for _ in range(REPEATS):
            with serving(run) as address:
                start = time.perf_counter()
                page.open(address)
                page.until("document.querySelectorAll('.chart canvas').length >= 4")
                seconds["curves"].append(time.perf_counter() - start)
                start = time.perf_counter()
                page.press("#tab-samples")
                page.until("document.querySelectorAll('.flow .t').length > 5")
                seconds["rollouts"].append(time.perf_counter() - start)
                page.driver.get("about:blank")
            with serving(long) as address:
                page.open(f"{address}#samples")
                page.until("document.querySelectorAll('.flow .t').length === 8000")
                seconds["slowest_frame"].append(page.driver.execute_async_script(SCROLL) / 1000)
                page.driver.get("about:blank")
        shown = {name: {"median": statistics.median(values), "all": values} for name, values in seconds.items()}
        print(json.dumps(json.loads(json.dumps(shown), parse_float=lambda text: round(float(text), 3))))


if __name__ == "__main__":
    main()
