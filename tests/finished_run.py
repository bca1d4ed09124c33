"""A real run in a folder, made once a session: the shipped student learning from a disturbed copy of itself."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

STEPS = 6
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
HOSTILE += "\x1b[31mred\x1b[0m \u202egnp.exe\u202c zero\u200bwidth </script><!-- & &lt;b&gt;"


def disturbed_student(folder: Path) -> Path:
    """`demo:student` with noise on its weights: a teacher that disagrees here and there."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from limbeck.models.loading import resolve

    source = resolve("demo:student")
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


def table_of(folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe for a run of a few seconds in `folder`/runs."""
    teacher = folder / "teacher"
    if not teacher.exists():
        disturbed_student(teacher)
    return {
        "name": "tiny",
        "output": str(folder / "runs"),
        "steps": STEPS,
        "student": {"model": "demo:student"},
        "teacher": {"kind": "local", "model": str(teacher)},
        "task": {"kind": "arithmetic", "digits": 3, "train": 64, "held_out": 16},
        "rollout": {"temperature": 0.7, "max_tokens": 33, "prompts_per_step": 4},
        "learner": {"lr": 1e-4},
        "eval": {"prompts": 8, "every": 3},
        "record": {"every": 2, "rollouts_per_step": 3, "watch": 2},
        **changes,
    }


def train(folder: Path, **changes: Any) -> Path:
    """The folder of a finished run."""
    import torch

    from limbeck import api
    from limbeck.config.recipe import parse_recipe

    torch.set_num_threads(1)
    return api.train(parse_recipe(table_of(folder, **changes))).folder


def shared(base: Path) -> Path:
    """The finished run of this session, made by whichever worker comes first."""
    base.mkdir(parents=True, exist_ok=True)
    with (base / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / "done").exists():
            train(base)
            (base / "done").touch()
    return base / "runs" / "tiny"


def rewrite(path: Path, change: Any) -> None:
    """Rewrite a Parquet file with `change` applied to its list of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    rows = change(table.to_pylist())
    half = path.with_suffix(".half")
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), half)
    os.replace(half, path)


def make_hostile(run: Path) -> None:
    """Put hostile text everywhere a model or a data set could have put it."""

    def hostile(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in rows:
            row["prompt_text"] = row["response_text"] = row["prompt_id"] = row["task"] = row["answer"] = HOSTILE
            row["tokens"] = [HOSTILE] * len(row["tokens"])
            row["student_top_tokens"] = [[HOSTILE] * len(top) for top in row["student_top_tokens"]]
            row["teacher_top_tokens"] = [[HOSTILE] * len(top) for top in row["teacher_top_tokens"]]
        return rows

    for path in (run / "rollouts").glob("step-*.parquet"):
        rewrite(path, hostile)
    for path in (run / "evaluations").glob("step-*.jsonl"):
        answers = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for number, answer in enumerate(answers):
            texts = dict.fromkeys(("prompt", "question", "answer", "response"), HOSTILE)
            call = json.dumps({"name": HOSTILE, "arguments": {HOSTILE: HOSTILE}})
            turns = [{"role": HOSTILE, "text": f"<tool_call>{call}"}]
            answer |= {**texts, "prompt_id": f"{number}{HOSTILE}", "turns": turns}
        path.write_text("".join(json.dumps(answer) + "\n" for answer in answers), encoding="utf-8")
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    broken = json.loads(lines[-2])
    broken["alarms"] = [{"name": HOSTILE, "message": HOSTILE}]
    with (run / "metrics.jsonl").open("w", encoding="utf-8") as file:
        file.write("\n".join([*lines[:-2], json.dumps(broken), lines[-1], ""]))
