"""Limbeck: on-policy distillation with student and teacher provably at the same temperature.

    import limbeck
    result = limbeck.train("recipes/demo.toml", ["rollout.temperature=0.7"])

`import limbeck` is cheap: torch is imported by what needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from limbeck.api import Evaluation, TrainResult, evaluate, sft, train

__all__ = ["Evaluation", "TrainResult", "__version__", "evaluate", "sft", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from limbeck import api

        return getattr(api, name)
    raise AttributeError(f"module 'limbeck' has no attribute {name!r}")
