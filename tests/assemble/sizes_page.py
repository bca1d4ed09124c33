"""The tables of what runs take, with other models than the recipes': cluster-8b in cluster.md, one-gpu in limits.md."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import transformers

from limbeck.assemble.model_size import ModelSize, size_of_config
from limbeck.assemble.role_sizes import Models
from limbeck.assemble.sizing import Process, Sizing, size_with
from limbeck.config.learner import LoraConfig
from limbeck.config.recipe import Recipe, load_recipe
from limbeck.formatting import size

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guides" / "cluster.md"
LIMITS = ROOT / "docs" / "guides" / "limits.md"
RECIPE = ROOT / "recipes" / "cluster-8b.toml"
ONE_GPU = ROOT / "recipes" / "one-gpu.toml"
BEGIN, END = "<!-- the tables: scripts/make_sizes.py writes them -->", "<!-- end of the tables -->"
RANKS = (1, 2, 4, 8, 16)
QWEN3 = {  # the config.json of each, as far as it says how large the model is
    "0.6B": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "1.7B": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "4B": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
    "8B": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
    "14B": {"hidden_size": 5120, "intermediate_size": 17408, "num_hidden_layers": 40, "num_attention_heads": 40},
    "32B": {"hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64, "num_attention_heads": 64},
}
TIED = ("0.6B", "1.7B", "4B")
BESIDE = ("1.7B", "4B", "8B", "14B", "32B")  # teachers of the one-GPU table
TRAINED = (("all weights", {}), ("LoRA of rank 16", {"lora": {"rank": 16}}))


@cache
def qwen3(name: str, dtype_bytes: int, lora: bool = False) -> ModelSize:
    config = transformers.Qwen3Config(
        vocab_size=151936, head_dim=128, num_key_value_heads=8, max_position_embeddings=40960,
        tie_word_embeddings=name in TIED, **QWEN3[name],
    )  # fmt: skip
    return size_of_config(name, config, dtype_bytes, LoraConfig(rank=16) if lora else None)


def sizing(student: str, teacher: str = "32B", ranks: int = 4, learner: dict[str, Any] | None = None) -> Sizing:
    recipe = load_recipe(RECIPE)
    assert recipe.cluster is not None
    changed = {**recipe.learner.model_dump(), **(learner or {})}
    table = {**recipe.model_dump(), "learner": changed}
    table["cluster"] = {**recipe.cluster.model_dump(), "learners": ranks}
    lora = bool(changed["lora"])
    models = Models(qwen3(student, 4, lora), {"teacher": qwen3(teacher, 2)})
    return size_with(Recipe.model_validate(table), models, on_gpu=True)


def on_one_gpu(student: str, teacher: str, changes: dict[str, Any]) -> Process:
    """recipes/one-gpu.toml with other models; of LoRA the base is held in bfloat16."""
    table = load_recipe(ONE_GPU).model_dump()
    recipe = Recipe.model_validate({**table, "learner": {**table["learner"], **changes}})
    models = Models(qwen3(student, 2 if changes else 4, bool(changes)), {"teacher": qwen3(teacher, 2)})
    (found,) = size_with(recipe, models, on_gpu=True).processes
    return found


def process(of: Sizing, name: str) -> Process:
    return next(one for one in of.processes if one.name == name)


def learners() -> str:
    rows = []
    for student in ("1.7B", "8B", "32B"):
        for what, changes in TRAINED:
            peaks = [process(sizing(student, ranks=n, learner=changes), "learner rank").peak("device") for n in RANKS]
            rows.append([student, what, *(size(peak.bytes) for peak in peaks)])
    return table(["student", "trained", *(f"{n} rank{'s' if n > 1 else ''}" for n in RANKS)], rows)


def others() -> str:
    rows = []
    for student in ("1.7B", "8B", "32B"):
        for what, changes in TRAINED:
            of = sizing(student, learner=changes)
            sampler = process(of, "sampler").peak("device").bytes
            sent = next(part.bytes for part in of.update if part.what.startswith("weights"))
            rows.append([student, what, size(sampler), size(of.disk[0].bytes), size(of.disk[1].bytes), size(sent)])
    return table(["student", "trained", "a sampler", "checkpoint", "beside it", "each update sends a sampler"], rows)


def teachers() -> str:
    rows = []
    for teacher in ("4B", "32B"):
        of = sizing("8B", teacher)
        states = next(part.bytes for part in of.update if part.what.startswith("teachers"))
        heads = next(p for r in process(of, "learner rank").roles for p in r.parts if p.what == "teachers' heads")
        rows.append([teacher, size(process(of, "teacher").peak("device").bytes), size(heads.bytes), size(states)])
    return table(["teacher", "a teacher's process", "its head, in each rank", "states of a step"], rows)


def one_card() -> str:
    rows = []
    for student in ("0.6B", "1.7B", "4B", "8B"):
        for what, changes in TRAINED:
            peaks = [on_one_gpu(student, teacher, changes).peak("device") for teacher in BESIDE]
            rows.append([student, what, *(size(peak.bytes) for peak in peaks)])
    return table(["student", "trained", *(f"teacher of {teacher}" for teacher in BESIDE)], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def page(text: str) -> str:
    """`text` of the guide with its tables made anew."""
    tables = f"""{BEGIN}

A rank of the learner, GPU memory at most:

{learners()}

A sampler's GPU memory, disk, and what travels:

{others()}

A teacher in bfloat16, for the 8B student:

{teachers()}

{END}"""
    return _put(text, tables)


def limits(text: str) -> str:
    """`text` of docs/guides/limits.md with its table made anew."""
    return _put(text, f"{BEGIN}\n\n{one_card()}\n\n{END}")


def _put(text: str, tables: str) -> str:
    found, count = re.subn(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: tables, text, flags=re.DOTALL)
    assert count == 1, "the page has no place for its tables"
    return found
