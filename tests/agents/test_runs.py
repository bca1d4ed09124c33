"""A run whose rollouts are those of an agent, from the recipe to the update."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import openai
from transformers import AutoTokenizer

import limbeck
from limbeck.config.recipe import parse_recipe
from tests.tiny_runs import table_of

TEMPLATE = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"


ROOT = Path(__file__).parents[2]


def recipe_of(folder: Path, rows: list[dict], **changes):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"misbehaves": "", **row}) + "\n" for row in rows))
    table = table_of(folder, output=str(folder / "runs"), steps=2, **changes)
    for model in ("student", "teacher"):
        tokenizer = AutoTokenizer.from_pretrained(folder / model)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(folder / model)
    table |= changes
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


def test_agents_that_run_elsewhere_as_the_guide_has_them(tmp_path) -> None:
    guide = (ROOT / "docs" / "guides" / "agents.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(next(block for block in python_blocks(guide) if "def work(" in block), names)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rows = [{"question": f"{i}+{i}="} for i in range(7)]
    recipe = recipe_of(tmp_path, rows, environment={"kind": "gateway", "port": port})
    workers = [Thread(target=works, args=(names["work"], f"http://127.0.0.1:{port}"), daemon=True) for _ in range(2)]
    for worker in workers:
        worker.start()
    result = limbeck.train(recipe)
    for worker in workers:
        worker.join(60)
    assert [line["env/requests"] for line in result.steps] == [
        4 - line.get("env/failed/agent_error", 0) for line in result.steps
    ]
    assert sum(line.get("env/failed/agent_error", 0) for line in result.steps) == 1


def works(work: Callable[..., None], server: str) -> None:
    while httpx_answers(server) is None:  # the run is not there yet
        time.sleep(0.05)
    work(server, solve)


def solve(client: openai.OpenAI, row: dict[str, Any]) -> float:
    if row["question"] == "3+3=":
        raise ValueError("threes are hard")
    messages: list[Any] = [{"role": "user", "content": row["question"]}]
    return float(
        len(client.chat.completions.create(model="student", messages=messages).choices[0].message.content or "")
    )


def httpx_answers(server: str) -> httpx.Response | None:
    try:
        return httpx.get(f"{server}/sessions")
    except httpx.TransportError:
        return None


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)
