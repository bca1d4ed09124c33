"""A run whose rollouts are those of an agent, from the recipe to the update."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoTokenizer

import limbeck
from limbeck.config.recipe import parse_recipe
from tests.tiny_runs import table_of

TEMPLATE = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"


def recipe_of(folder: Path, rows: list[dict], **changes):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"misbehaves": "", **row}) + "\n" for row in rows))
    table = table_of(folder, output=str(folder / "runs"), steps=2, **changes)
    for model in ("student", "teacher"):
        tokenizer = AutoTokenizer.from_pretrained(folder / model)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(folder / model)
    table["task"] = {"kind": "agent", "function": "tests.agents.talks:two_turns", "path": str(path), "held_out": 1}
    return parse_recipe(table)


def test_an_agent_with_the_openai_package_is_trained_on_and_what_misbehaves_is_left_out(tmp_path) -> None:
    rows = [{"question": f"{i}+{i}="} for i in range(7)]
    rows[3]["misbehaves"] = "exits"
    result = limbeck.train(recipe_of(tmp_path, rows))
    assert len(result.steps) == 2
    failed = [line.get("env/failed/agent_exited", 0) for line in result.steps]
    for line, lost in zip(result.steps, failed, strict=True):
        assert line["responses"] == 4 - lost
        assert line["env/turns"] == 2
        assert line["env/requests"] == 2 * (4 - lost)
        assert line["env/spliced"] == 0.5  # the second turn follows the first's ids
        assert line["reward"] > 0
    assert sum(failed) == 1
