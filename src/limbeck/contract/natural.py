"""The temperature of a folder's own logits: 1, or the one that `limbeck bake` wrote into it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from limbeck.errors import ContractError, ModelError
from limbeck.models.folder import BAKED_TEMPERATURE, CONFIG, read_json
from limbeck.records import ProbeResult


def natural_temperature_of(folder: str | Path) -> float:
    """T of a model folder that `limbeck bake` wrote, else 1. A hub name that is no folder here is never baked here: 1.

    Raises `ModelError` where config.json cannot be read, or names what is no temperature.
    """
    path = Path(folder) / CONFIG
    if not os.path.isfile(path):
        return 1.0
    found = read_json(path).get(BAKED_TEMPERATURE, 1.0)
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < sys.float_info.max:
        raise ModelError(
            f"{path}: {BAKED_TEMPERATURE} is {found!r}, expected a finite number above 0. Bake the model again with "
            "`limbeck bake`."
        )
    return float(found)


def refuse_baked(key: str, model: str, natural_temperature: float) -> None:
    """Raises `ContractError` for a baked model, where T is divided by once more; `key` is the recipe's."""
    if natural_temperature == 1:
        return
    remedy = f"Give {key} the model that it was baked from, or serve the baked folder and set teacher.baked."
    raise ContractError(
        f"{key} = {model!r} was baked for temperature {natural_temperature:g}: its logits are divided by that already, "
        f"and would be divided by the rollout temperature too. {remedy}",
        [ProbeResult("natural temperature", f"{natural_temperature:g}", "1", ok=False, remedy=remedy)],
    )
