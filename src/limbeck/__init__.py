"""Limbeck: on-policy distillation with student and teacher provably at the same temperature.

    import limbeck
    result = limbeck.train("recipes/demo.toml", ["rollout.temperature=0.7"])
    limbeck.load_run("runs/demo").metrics

`import limbeck` is cheap: torch is imported by what needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from limbeck.api import Evaluation, TrainResult, compare, evaluate, sft, train
    from limbeck.config.recipe import Recipe, load_recipe
    from limbeck.training.saved_run import SavedRun, load_run

__all__ = [
    "Evaluation", "Recipe", "SavedRun", "TrainResult", "__version__", "compare", "evaluate", "load_recipe", "load_run",
    "sft", "train",
]  # fmt: skip
_HOMES = {
    "Recipe": "config.recipe",
    "load_recipe": "config.recipe",
    "SavedRun": "training.saved_run",
    "load_run": "training.saved_run",
}  # all others: `api`


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"limbeck.{_HOMES.get(name, 'api')}"), name)
    raise AttributeError(f"module 'limbeck' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
