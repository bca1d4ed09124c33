"""vLLM as an engine: `/v1/completions`, and weights reloaded from a folder in development mode.

vLLM's CPU builds pack the output head apart and, where it is tied to the embeddings, keep the old one when
weights are reloaded. So weights always travel with a head of their own, which those builds take and others
ignore. Whether a build took it, the engine's fixed text shows.
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from limbeck.engines.weights_folder import WeightsFolder
from limbeck.errors import ModelError
from limbeck.models.folder import INDEX, WHOLE
from limbeck.protocols import Policy
from limbeck.wire import vllm
from limbeck.wire.dialects import JsonDialect
from limbeck.wire.http import Pool

HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"
BODY, HEAD_FILE = "model-body.safetensors", "model-head.safetensors"


class VLLMServer(JsonDialect):
    """Started with `VLLM_SERVER_DEV_MODE=1`."""

    remedy = (
        "Start vLLM with the student's model and VLLM_SERVER_DEV_MODE=1, on a machine that sees the folder of the "
        "weights under the same path (set engine.weights_folder to one that it sees); a folder it does not see ends "
        "it. Serve in the precision of the recipe, or raise engine.tolerance: look at its log."
    )

    def __init__(self) -> None:
        super().__init__("vllm", vllm, names_model=True)

    async def push(self, pool: Pool, policy: Policy, label: str, dtype: str, weights: WeightsFolder) -> int:
        """See `served.Server`."""

        def write(folder: Path) -> None:
            policy.save(folder, dtype)
            untie_head(folder)

        before = weights.written
        async with weights.of(policy, dtype, write) as folder:
            size = weights.written - before
            body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
            await self.tell(pool, "/collective_rpc", body)
        await self.tell(pool, "/reset_prefix_cache", {})
        return size


def untie_head(folder: Path) -> bool:
    """Give the model in `folder` an output head of its own, a tensor more and the same function.

    False where it has one already.

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
