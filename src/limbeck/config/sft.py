"""A recipe for supervised fine-tuning, made of one for distillation: its data sets, and no teacher.

The loss is the forward KL to a point mass on each token of a completion, -log p of that token. Everything else is as
the recipe says: the student, the learner, steps, checkpoints, evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.errors import RecipeError
from limbeck.formatting import shown

OBJECTIVE = {"divergence": "forward_kl", "support": 1}
SUFFIX = "-sft"
OWN_TABLES = ("teacher", "objective")


def sft_table(table: Mapping[str, Any]) -> dict[str, Any]:
    """The same recipe, not validated yet, with the data sets of `rollout.sources` alone and under a name of its own.

    One that is for supervised fine-tuning already stays as it is. Raises `RecipeError` where there is no data set.
    """
    if _get(table.get("teacher"), "kind") == "dataset":
        return dict(table)
    sources = _get(table.get("rollout"), "sources")
    found = sources if isinstance(sources, Sequence) and not isinstance(sources, str) else ()
    data = [dict(source) for source in found if isinstance(source, Mapping) and source.get("from") == "dataset"]
    if not data:
        raise RecipeError(
            "limbeck sft trains on the data sets of rollout.sources, and the recipe has none. Add one: "
            """rollout.sources='[{from = "dataset", path = "rows.jsonl"}]'"""
        )
    shares = [source.get("share", 1.0) for source in data]
    if all(isinstance(share, int | float) and not isinstance(share, bool) and share > 0 for share in shares):
        data = [{**source, "share": share / sum(shares)} for source, share in zip(data, shares, strict=True)]
    name = table.get("name", "run")
    return {
        **table,
        "name": name + SUFFIX if isinstance(name, str) else name,
        "teacher": {"kind": "dataset"},
        "objective": OBJECTIVE,
        "rollout": {**table["rollout"], "sources": data},
    }


def refuse_overrides(overrides: Sequence[str]) -> None:
    """Raises `RecipeError` for one of a table that is not the recipe's here."""
    for override in overrides:
        if override.partition("=")[0].partition(".")[0].strip() in OWN_TABLES:
            raise RecipeError(
                f"override {shown(override)}: limbeck sft has no teacher, and its objective is the forward KL to the "
                "data. Leave it out, or use limbeck train."
            )


def _get(table: Any, key: str) -> Any:
    return table.get(key) if isinstance(table, Mapping) else None
