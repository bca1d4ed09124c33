"""`limbeck.train` in a notebook: a real Jupyter kernel, in whose event loop a run shows itself in the cell's output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tiny_runs import save_models

CELL = """
import limbeck
table = {{
    "name": "noted", "steps": 3, "threads": 1,
    "student": {{"model": "{models}/student"}}, "teacher": {{"model": "{models}/teacher"}},
    "task": {{"kind": "arithmetic", "digits": 1, "train": 20, "held_out": 4}},
    "rollout": {{"max_tokens": 4, "prompts_per_step": 4}}, "eval": {{"prompts": 4}},
    "record": {{"every": 1}},
}}
result = limbeck.train(table, ["output={folder}"])
result
"""
LATER = """
run = limbeck.load_run(result.folder)
again = limbeck.train(run.recipe, display=False)
run.metrics["kind"].tolist(), len(run.rollouts), len(again.steps)
"""


def outputs(cell: Any, kind: str) -> list[Any]:
    return [output["data"] for output in cell["outputs"] if output["output_type"] == kind]


@pytest.mark.slow
def test_a_run_shows_itself_in_the_cell(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    models = save_models(tmp_path / "models")
    cells = [nbformat.v4.new_code_cell(text.format(models=models, folder=tmp_path)) for text in (CELL, LATER)]
    book = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    first, second = book.cells
    assert "3 steps, 2 evaluations" in outputs(first, "execute_result")[0]["text/plain"]
    panels = [data["text/html"] for data in outputs(first, "display_data") if "step 3/3" in data["text/html"]]
    assert len(panels) == 1, "one output, replaced in place"
    for part in ("noted", "done", "reverse KL", "nats/token", "evaluation at step 3"):
        assert part in panels[0]
    assert any("the run takes at most" in str(output) for output in first["outputs"])
    assert not outputs(second, "display_data"), "display=False shows nothing"
    (found,) = outputs(second, "execute_result")
    assert found["text/plain"].startswith("(['eval', 'train', 'train', 'train', 'eval'], ")
    assert found["text/plain"].endswith(", 3)")
