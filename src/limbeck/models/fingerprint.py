"""A short name of a model's weights: what computes other log-probs has another one.

    fingerprint("models/teacher", "float32")      "9f86d081884c7d659a2feaa0c55ad015"

SHA-256 over whole files, not over a sample of them: one bit that differs is found. On two cores 0.3 to 1.5 GB a
second and file, beside which the model was just read from disk.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from limbeck.errors import ModelError
from limbeck.files.disk import sha256
from limbeck.models.folder import CONFIG, INDEX, WHOLE, read_json, read_places
from limbeck.models.loading import resolve

# What transformers would read, in the order in which it looks. A folder may hold the same weights in other formats too.
PATTERNS = (WHOLE, "model-*-of-*.safetensors", "*.safetensors", "*.bin", "*.pt", "*.gguf")
# Such a file names the shards; it is asked where the one beside it is missing, and before the pattern below.
INDEXES = {
    "model-*-of-*.safetensors": (INDEX, WHOLE),
    "*.bin": ("pytorch_model.bin.index.json", "pytorch_model.bin"),
}
# Of config.json: where the weights came from and what wrote them, which changes nothing. The dtype is the served one.
VOLATILE = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")


def fingerprint(model: str, dtype: str) -> str:
    """32 hex digits, of a folder or a hub name whose files are here. Raises `ModelError`."""
    folder = _folder(model)
    digest = hashlib.sha256(f"limbeck weights 1 {dtype}".encode())
    files = weight_files(folder)
    if not files:
        raise ModelError(f"{model}: no weights in {folder}, expected {', '.join(PATTERNS)}")
    config = read_json(folder / CONFIG)
    try:
        with ThreadPoolExecutor() as threads:  # hashing holds no lock, and large models come in many files
            digests = list(threads.map(sha256, files))
    except OSError as error:
        raise ModelError(f"{model}: its files cannot be read for their fingerprint: {error}") from None
    kept = {key: value for key, value in config.items() if key not in VOLATILE}
    for part in (
        json.dumps(kept, sort_keys=True),
        *(f"{file.relative_to(folder)} {d}" for file, d in zip(files, digests, strict=True)),
    ):
        digest.update(f"{len(part)} {part}".encode())
    return digest.hexdigest()[:32]


def weight_files(folder: Path) -> list[Path]:
    """The files that a model folder's weights are read from, sorted by name; with an index, it and what it names.

    Raises `ModelError` for an index that cannot be read.
    """
    for pattern in PATTERNS:
        index, whole = (folder / name for name in INDEXES.get(pattern, ("", "")))
        if index.is_file() and not whole.is_file():
            return [index, *sorted(_named_in(index))]
        if found := sorted(path for path in folder.glob(pattern) if path.is_file()):
            return found
    return []


def files_now(model: str) -> list[tuple[str, int, int, int]]:
    """Path, size, time of change and inode of what the fingerprint is of: others than before are other files.

    Raises `ModelError`.
    """
    folder = _folder(model)
    try:
        stats = [(str(file), file.stat()) for file in (folder / CONFIG, *weight_files(folder))]
    except OSError as error:
        raise ModelError(f"{model}: its files cannot be read: {error}") from None
    return [(name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats]


def _named_in(index: Path) -> set[Path]:
    try:
        return {index.parent / name for name in read_places(index).values()}
    except ModelError as error:
        raise ModelError(f"{index} cannot be read: {error}") from None


def _folder(model: str) -> Path:
    path = Path(resolve(model))
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except Exception as error:  # the hub's own kinds
        raise ModelError(f"{model}: its files are not where the hub's cache should have them: {error}") from None
