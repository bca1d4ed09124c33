"""A model folder's tied output head made a tensor of its own: the same function, a little larger."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from limbeck.errors import ModelError

HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"
INDEX, WHOLE, BODY, HEAD_FILE = (
    "model.safetensors.index.json", "model.safetensors", "model-body.safetensors", "model-head.safetensors",
)  # fmt: skip


def untie_head(folder: Path) -> bool:
    """Give the model in `folder` an output head of its own; False where it has one.

    Raises `ModelError` where the folder's embedding cannot be found.
    """
    config_path = folder / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    files = _files(folder)
    if HEAD in files:
        return False
    embeddings = [name for name in files if name.endswith(EMBEDDING)]
    if len(embeddings) != 1:
        raise ModelError(
            f"{folder}: expected one tensor named '...{EMBEDDING}' to make an output head of, found {embeddings}."
        )
    (name,) = embeddings
    with safe_open(folder / files[name], framework="pt") as file:
        embedding = file.get_tensor(name)
    save_file({HEAD: embedding}, folder / HEAD_FILE, metadata={"format": "pt"})
    if files[name] == WHOLE:  # transformers looks for that name before it looks at an index
        (folder / WHOLE).rename(folder / BODY)
        files = dict.fromkeys(files, BODY)
    files[HEAD] = HEAD_FILE
    size = sum((folder / one).stat().st_size for one in set(files.values()))
    index = {"metadata": {"total_size": size}, "weight_map": files}
    (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    config_path.write_text(json.dumps(config | {"tie_word_embeddings": False}, indent=2), encoding="utf-8")
    return True


def _files(folder: Path) -> dict[str, str]:
    """The file of each tensor. Raises `ModelError` where there is none."""
    if (folder / INDEX).exists():
        files: dict[str, str] = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return files
    if not (folder / WHOLE).exists():
        raise ModelError(f"{folder} has no {WHOLE}. Save the model again with save_pretrained(folder).")
    with safe_open(folder / WHOLE, framework="pt") as file:
        return dict.fromkeys(file.keys(), WHOLE)
