"""The System tab: who works and who waits, and charts of what a run has recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.view import made

from .looking import Served, colours_of
from .page import Page

PHASES = {"seconds/sample": 6.0, "seconds/score": 1.0, "seconds/update": 2.0, "seconds/step": 10.0}


def _run(folder: Path, recipe: str = "", **metrics: float) -> Path:
    """Nine steps, of which the first six took twice as long."""
    folder.mkdir()
    (folder / "recipe.toml").write_text(f'name = "{folder.name}"\nsteps = 9\n{recipe}')
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, 10):
            slow = 2 if step <= 6 else 1
            seconds = {key: value * (slow if key.startswith("seconds/") else 1) for key, value in metrics.items()}
            file.write(json.dumps(made.metrics_line(step, **seconds)) + "\n")
    return folder


def _roles(page: Page) -> list[list[str]]:
    page.until("document.querySelector('.roles tbody tr')")
    rows: list[list[str]] = page.run("""
      return [...document.querySelectorAll('.roles tbody tr')].map((row) => [...row.cells].map((c) => c.textContent))
    """)
    return rows


def test_in_one_process_a_role_waits_while_the_others_work(page: Page, tmp_path: Path, served: Served) -> None:
    page.open(served(_run(tmp_path / "one", **PHASES)) + "#system")
    assert _roles(page) == [
        ["Sampler", "6", "4", "", "40%"],
        ["Teacher", "1", "9", "", "90%"],
        ["Learner", "2", "8", "", "80%"],
        ["Grading, recording, the rest", "1", "\u2013", "", "\u2013"],
    ]
    assert "The sampler sets the pace" in page.texts(".verdict")[0]
    page.run("""const select = [...document.querySelectorAll('.system select')].at(-1);
      select.value = 'all'; select.dispatchEvent(new Event('change'))""")
    page.until("location.hash === '#system?steps=all'")
    assert _roles(page)[0][1] == "10", "the slow steps too"


def test_a_fleet_counts_in_its_processes_and_names_what_to_raise(page: Page, tmp_path: Path, served: Served) -> None:
    times = {"sampler": (9.0, 1.0), "teacher/math": (2.0, 8.0), "learner": (3.0, 7.0)}
    values = {f"seconds/worked/{role}": worked for role, (worked, _) in times.items()}
    values |= {f"seconds/waited/{role}": waited for role, (_, waited) in times.items()}
    folder = _run(tmp_path / "fleet", "[cluster]\nsamplers = 2\n[rollout]\nlag = 1\n", **PHASES, **values)
    page.open(served(folder) + "#system")
    assert [row[:3] for row in _roles(page)] == [
        ["Sampler", "9", "1"],
        ["Teacher math", "2", "8"],
        ["Learner", "3", "7"],
    ]
    assert "A larger cluster.samplers would make a step shorter" in page.texts(".verdict")[0]


def test_of_roles_that_all_wait_most_of_the_time_none_sets_the_pace(page: Page, tmp_path: Path, served: Served) -> None:
    phases = {"seconds/sample": 3.2, "seconds/score": 2.8, "seconds/update": 3.0, "seconds/step": 9.0}
    page.open(served(_run(tmp_path / "even", **phases)) + "#system")
    page.until("document.querySelector('.roles tbody tr')")
    said = page.texts(".verdict")[0]
    assert said.startswith("No role works most of the time: the sampler waits least, 64% of the time, the learner 67%")


def test_with_lag_a_role_waits_as_its_queue_says(page: Page, tmp_path: Path, served: Served) -> None:
    waits = {"seconds/wait/sample": 0.5, "seconds/wait/score": 3.0, "seconds/wait/update": 4.0}
    folder = _run(tmp_path / "lag", "[rollout]\nlag = 1\n", **PHASES, **waits)
    page.open(served(folder) + "#system")
    assert [row[2] for row in _roles(page)] == ["0.50", "3", "4"]


def test_charts_of_what_there_is_and_no_others(page: Page, tmp_path: Path, served: Served) -> None:
    found: dict[str, Any] = {
        "system/cpu": 1.5, "system/cpu/machine": 0.8, "system/memory": 2.5e9, "system/memory/machine": 0.4,
        "system/cpu/sampler": 3.0, "system/gpu/0/memory": 40e9, "system/gpu/0/reserved": 50e9,
        "system/gpu/0/machine": 0.7, "system/gpu/0/utilisation": 0.9,
    }  # fmt: skip
    page.open(served(_run(tmp_path / "gpu", **PHASES, **found)) + "#system")
    for title in ("Processors", "Memory", "The machine", "GPU memory", "GPU in use"):
        assert colours_of(page, title) > 3, title
    titles = page.run("return [...document.querySelectorAll('.system .chart h3')].map((h) => h.firstChild.data)")
    assert "Model FLOPs utilisation" not in titles
    labels = page.run(
        "return [...document.querySelectorAll('.system .chart')].map((c) => [c.querySelector('h3').firstChild.data, "
        "[...c.querySelectorAll('.values .entry')].map((e) => e.textContent)])"
    )
    charts = dict(labels)
    assert charts["Processors"] == ["the run's process 1.50", "sampler 3"]
    assert charts["Memory"] == ["the run's process 2.50"]
    assert charts["The machine"] == ["processors 80.0%", "memory 40.0%"]
    assert charts["GPU in use"] == ["GPU 0, computing 90.0%", "GPU 0, memory 70.0%"]
    assert "2.50 GB" in " ".join(page.texts(".system .tile"))


def test_a_run_without_such_metrics_has_its_phases_alone(page: Page, tmp_path: Path, served: Served) -> None:
    page.open(served(_run(tmp_path / "old", **PHASES)) + "#system")
    page.until("document.querySelectorAll('.system .tile').length === 2")
    titles = page.run("return [...document.querySelectorAll('.system .chart h3')].map((h) => h.firstChild.data)")
    assert titles == ["Tokens a second"]


@pytest.mark.parametrize("tab", ["curves", "samples", "disagreement", "system", "recipe"])
def test_nothing_is_wider_than_a_phone(tab: str, page: Page, run: Path, served: Served) -> None:
    """What is wider scrolls in its place, whose edges fade; numbers stay on their line."""
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": False}
    )
    try:
        page.open(f"{served(run)}#{tab}")
        page.until(f"!document.getElementById('panel-{tab}').hidden")
        page.until("document.documentElement.scrollWidth <= 390")
        wide = page.run("""
          const seen = [...document.querySelectorAll('.scroll')].filter((e) => e.checkVisibility());
          const wide = seen.filter((e) => e.scrollWidth > e.clientWidth + 1);
          return wide.map((e) => [e.tabIndex, getComputedStyle(e).maskImage.includes('28px')]);
        """)
        assert all(each == [0, True] for each in wide), "reached by keyboard, with a faded edge"
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
