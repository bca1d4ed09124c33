"""The page on parts of one's own: its parts are short, train through a recipe, and stop where they should."""

from __future__ import annotations

import ast
import csv
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import limbeck
from limbeck.config.recipe import parse_recipe
from limbeck.errors import ContractError, RecipeError

PAGE = (Path(__file__).parents[1] / "docs" / "guides" / "extending.md").read_text(encoding="utf-8")
BLOCKS = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if block.startswith("# my_parts.py")]
TABLES, ENGINE = map(tomllib.loads, re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL))
SHORT = {"steps": 2, "threads": 1, "student": {"model": "demo:student"}, "eval": {"prompts": 8}}
ROLLOUT = {"temperature": 0.7, "max_tokens": 6, "prompts_per_step": 8}


@pytest.fixture
def my_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_parts.py").write_text("\n\n".join(BLOCKS), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_parts", raising=False)
    return tmp_path


def recipe(folder: Path, **changes: Any) -> Any:
    return parse_recipe({**SHORT, "output": str(folder / "runs"), "rollout": ROLLOUT, **TABLES, **changes})


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: re.findall(r"class (\w+)", block)[0])
def test_each_part_is_under_thirty_lines(block: str) -> None:
    (part,) = [node for node in ast.parse(block).body if isinstance(node, ast.ClassDef)]
    assert part.end_lineno is not None
    assert part.end_lineno - part.lineno < 30


def test_the_page_trains(my_parts: Path) -> None:
    result = limbeck.train(recipe(my_parts))
    rows = list(csv.reader((result.folder / "steps.csv").open()))
    assert [row[0] for row in rows] == ["step", "1", "2"]
    assert result.steps[-1]["objective"] == float(rows[-1][1])
    assert result.evaluations[0]["prompts"] == 8


def test_a_teacher_that_forgets_to_divide_is_refused(my_parts: Path) -> None:
    """However honest its stamp looks."""
    wrong = "\n\n".join(BLOCKS).replace("(mixed / request.temperature)", "mixed")
    (my_parts / "my_parts.py").write_text(wrong)
    with pytest.raises(ContractError, match=r"does not score at temperature 0\.7"):
        limbeck.train(recipe(my_parts))


def test_an_objective_with_a_slip_is_refused(my_parts: Path) -> None:
    wrong = "\n\n".join(BLOCKS).replace("- self.alpha * (logp - mixed).exp()", "")
    (my_parts / "my_parts.py").write_text(wrong)
    with pytest.raises(RecipeError, match="pull"):
        limbeck.train(recipe(my_parts))


def test_the_pages_engine_samples_what_the_built_in_one_does(my_parts: Path) -> None:
    ours = limbeck.train(recipe(my_parts, name="ours", **ENGINE))
    built_in = limbeck.train(recipe(my_parts, name="built-in"))
    assert [step["objective"] for step in ours.steps] == pytest.approx(
        [s["objective"] for s in built_in.steps], abs=1e-5
    )
    assert abs(ours.steps[-1]["mismatch"]) < 1e-4
