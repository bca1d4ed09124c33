"""What the files of a model folder must be before anything is made of them.

    check_files(Path(folder))
    with bounded(name, Path(folder)):
        model = AutoModelForCausalLM.from_pretrained(folder)

transformers takes a config.json at its word: it makes as many layers as it says, and reads nothing of a damaged
generation_config.json or of a wrong index. Here each file is read as what it claims to be, with bounds, and named.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.errors import ModelError
from limbeck.files.disk import open_file
from limbeck.formatting import shown

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

BAKED_TEMPERATURE = "limbeck_temperature"  # in config.json, of a folder that `limbeck bake` wrote
CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
MAX_BYTES = 64 * 2**20  # of one JSON file: an index of a large model has a few
MOST_LAYERS = 10_000
LARGEST = 2**48  # of a whole number in config.json
MOST_VALUES = 10**6  # in one config.json
PER_BYTE = 16  # numbers of a model for each byte of its files: two for weights of 4 bits, and what is derived
SPARE = 2**28  # numbers besides: masks and tables of positions that no file holds
EACH = 2**16  # that a tensor counts for besides its own, so that their number is bounded too
LAYERS = re.compile(r"(^|_)n(um)?_(\w+_)?layers?$|_layers$")


def read_json(path: Path) -> Mapping[str, Any]:
    """The table in a JSON file. Raises `ModelError` naming the file for anything else."""
    try:
        with open_file(path) as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ModelError(f"{path} has more than {MAX_BYTES >> 20} MB. Take the file that came with the model.")
        table = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no JSON, or not in UTF-8
        raise ModelError(f"{path} cannot be read as JSON: {error}. Take the file that came with the model.") from error
    if not isinstance(table, dict):
        raise ModelError(f"{path} holds {shown(table)}, expected a table. Take the file that came with the model.")
    return table


def read_places(index: Path) -> Mapping[str, str]:
    """The file of each tensor, from an index of shards. Raises `ModelError` for anything else."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(place, str) for place in places.values()):
        raise ModelError(f"{index}: weight_map is {shown(places)}, expected a table of tensors and their files.")
    return places


def stored_dtype(name: str) -> torch.dtype | None:
    """The one dtype of all weights in the safetensors files of a folder or hub name; None where there is no such."""
    import torch
    from safetensors import safe_open
    from transformers.utils import cached_file

    def found(file: str) -> Path | None:
        path = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
        return None if path is None else Path(path)

    whole, index = found(WHOLE), found(INDEX)
    paths = [whole] if index is None else [found(place) for place in sorted(set(read_places(index).values()))]
    dtypes = set()
    for path in paths:
        if path is None:
            return None
        with safe_open(path, framework="pt") as file:
            dtypes |= {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 (not a mapping)
    known = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    return known.get(dtypes.pop()) if len(dtypes) == 1 else None


def check_files(folder: Path) -> None:
    """Raises `ModelError` for a file that is damaged, or that contradicts another one."""
    _check_numbers(folder / CONFIG)
    for name in (GENERATION, TOKENIZER):
        if (folder / name).exists():
            read_json(folder / name)
    if (folder / INDEX).exists():
        if (folder / WHOLE).exists():
            raise ModelError(
                f"{folder} has both {WHOLE} and {INDEX}: one of them is of another model. Remove the one that is left "
                "over."
            )
        _check_index(folder)
    elif (folder / WHOLE).exists():
        tensors_in(folder / WHOLE)


def tensors_in(path: Path) -> set[str]:
    """The names of the tensors in a safetensors file. Raises `ModelError` for one that is damaged or not there."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():  # a pipe would be waited for
        raise ModelError(f"{path} is no file. Copy or download it again.")
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} cannot be read as safetensors: {error}. Copy or download it again.") from error
    except RuntimeError as error:  # torch's own: a file larger than what may be mapped
        raise ModelError(
            f"{path} cannot be mapped: {error}. Take a machine with more memory, or save the model in shards."
        ) from error
    _check_prefixes(path, names)
    return names


def _check_prefixes(path: Path, names: set[str]) -> None:
    """transformers reads `layers.0.x` as `model.layers.0.x`: of two such names one would be taken, in silence."""
    without: dict[str, str] = {}
    for name in sorted(names):
        bare = re.sub(r"^((model|transformer|base_model)\.)+", "", name)
        if (other := without.setdefault(bare, name)) != name:
            raise ModelError(
                f"{path} holds one weight under two names, {other!r} and {name!r}, of which one would be read. Remove "
                "the other, or take the file that came with the model."
            )


def _check_numbers(path: Path) -> None:
    """No config means a NaN, or more layers than any model has; transformers would begin to make them."""
    pending: list[tuple[str, Any]] = list(read_json(path).items())
    count = 0
    while pending:
        key, value = pending.pop()
        count += 1
        if count > MOST_VALUES:
            raise ModelError(f"{path} has more than {MOST_VALUES:,} values. Take the file that came with the model.")
        if isinstance(value, dict):
            pending += [(str(name), part) for name, part in value.items()]
        elif isinstance(value, list):
            pending += [(key, part) for part in value]
        elif isinstance(value, float) and not math.isfinite(value):
            raise ModelError(f"{path}: {key} = {value}, expected a finite number. Take the file of the model.")
        elif isinstance(value, int) and abs(value) > (most := MOST_LAYERS if LAYERS.search(key) else LARGEST):
            raise ModelError(f"{path}: {key} = {shown(value)}, expected at most {most}. Take the file of the model.")


def _check_index(folder: Path) -> None:
    """The index names the tensors of its shards, all of them, each in the right one."""
    path = folder / INDEX
    places = read_places(path)
    for name in sorted(set(places.values())):
        if Path(name).name != name or not (folder / name).is_file():
            raise ModelError(f"{path} names the file {shown(name)}, which is not in {folder}. Copy or download it.")
        listed, there = {tensor for tensor, place in places.items() if place == name}, tensors_in(folder / name)
        if odd := sorted(listed ^ there):
            where = f"is in {INDEX} only" if odd[0] in listed else "is not in it by the index"
            raise ModelError(
                f"{folder / name}: {shown(odd[0])} {where}, and so {len(odd)} tensors in all. Index and shards are of "
                "different models: copy or download both again."
            )


class _TooLargeError(Exception):
    """The model that is being made has more than its files can hold."""


@contextmanager
def bounded(name: str, folder: Path) -> Iterator[None]:
    """Stops a model from being made that is larger than the files in `folder` can fill.

    A name of the hub, and a folder without weights, which can be counted but not loaded, have a bound far above any
    model. Raises `ModelError`. Counted where modules take their parameters, which have no memory yet.
    """
    from torch.nn.modules.module import (
        register_module_buffer_registration_hook,
        register_module_parameter_registration_hook,
    )

    files = [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    filled = any(path.suffix in WEIGHTS for path in files)
    size = sum(path.stat().st_size for path in files) if filled else 2**43
    most, made = PER_BYTE * size + SPARE, [0]

    def count(_module: nn.Module, _name: str, tensor: Tensor | None) -> None:
        if tensor is not None and tensor.is_meta:
            made[0] += tensor.numel() + EACH
            if made[0] > most:
                raise _TooLargeError

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        yield
    except _TooLargeError:
        raise ModelError(
            f"{name}: config.json describes a model of more than {most:,} numbers, but its files have {size:,} bytes. "
            "Take the config.json that came with the weights."
        ) from None
    finally:
        for hook in hooks:
            hook.remove()
