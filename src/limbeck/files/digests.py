"""`state.json` ties files to their content: a checkpoint's, and those of a finished run.

    {"format": 2, "step": 4, ..., "files": {"model/config.json": "<sha256>", ...}, "digest": "<sha256 of the rest>"}

A changed, missing or additional file is found when a checkpoint is read, and so is a `state.json` that was changed.
Checkpoints of format 1 have no digests: they are taken, and whoever takes one is warned.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import RunError
from limbeck.files.disk import read_file, sha256, write_whole
from limbeck.files.names import numbered, step_of

logger = logging.getLogger("limbeck")

STATE_FILE, RECIPE_FILE, CHECKPOINTS = "state.json", "recipe.toml", "checkpoints"
FORMAT, WITHOUT_DIGESTS = 2, 1


class DamagedError(RunError):
    """Files are not what was written. The message names one, and has no remedy."""


@dataclass(frozen=True)
class State:
    """What `state.json` says. `files` and `recipe` are None in the format without digests."""

    step: int
    metrics_bytes: int
    files: Mapping[str, str] | None
    recipe: Mapping[str, Any] | None


def seal(folder: Path, values: Mapping[str, Any], files: Mapping[str, str] | None = None) -> None:
    """Write `state.json` with the digests of all that is in `folder`, or with those given. Raises `OSError`."""
    table = {"format": FORMAT, **values, "files": digests_of(folder) if files is None else files}
    text = json.dumps({**table, "digest": _digest(table)}, allow_nan=False)
    write_whole(folder / STATE_FILE, text.encode())


def digests_of(folder: Path, prefix: str = "") -> dict[str, str]:
    """SHA-256 of every file below `folder`, by its path relative to it; without `state.json`. Raises `OSError`."""
    return {name: _digest_of_file(folder / name.removeprefix(prefix)) for name in sorted(_names_in(folder, prefix))}


def read_state(folder: Path) -> State:
    """Raises `DamagedError` where `state.json` is missing, was changed, or is of another format."""
    path = folder / STATE_FILE
    if not folder.is_dir():
        raise DamagedError(f"{folder} is not a folder")
    try:
        data = read_file(path)
        table = json.loads(data)
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing") from None
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise DamagedError(f"{path} is not JSON") from None
    if not isinstance(table, dict):
        raise DamagedError(f"{path} holds no table")
    format_ = table.get("format")
    if {"files", "digest"} & table.keys() or format_ == FORMAT:
        as_written = json.dumps(table).encode() == data  # to the byte: a space too
        if table.pop("digest", None) != _digest(table) or not as_written:
            raise DamagedError(f"{path} does not match its digest")
        if format_ != FORMAT:
            raise DamagedError(f"{path} has format {format_!r}, expected {FORMAT}")
    elif format_ != WITHOUT_DIGESTS:
        raise DamagedError(f"{path} has format {format_!r}, expected {FORMAT}")
    step, length = table.get("step"), table.get("metrics_bytes", 0)
    if type(step) is not int or type(length) is not int or step < 0 or length < 0:
        raise DamagedError(f"{path} has step {step!r} and metrics_bytes {length!r}, expected two counts")
    files, recipe = table.get("files"), table.get("recipe")
    if not isinstance(files, dict | None) or not isinstance(recipe, dict | None):
        raise DamagedError(f"{path} has files or a recipe that is no table")
    return State(step, length, files, recipe)


def check_checkpoint(folder: Path) -> State:
    """What the checkpoint in `folder` says, if its files are those that were written. Raises `DamagedError`."""
    state = read_state(folder)
    number = step_of(folder.name)
    if number is not None and number != state.step:
        raise DamagedError(f"{folder / STATE_FILE} is of step {state.step}, expected {number}")
    if state.files is None:
        logger.warning(
            "%s was written by a version of Limbeck that kept no digests: it is taken without checking its files",
            folder,
        )
    else:
        _compare(folder, state.files, _names_in(folder))
    return state


def check_model_folder(folder: Path) -> None:
    """Raises `RunError` where a run wrote `folder`, in a checkpoint or as its finished model, and it is not as written.

    A folder of anybody else's is none of our business.
    """
    home = folder.absolute().parent
    in_checkpoint = step_of(home.name) is not None and home.parent.name == CHECKPOINTS
    if not in_checkpoint and not _is_sealed(home):
        if (home / RECIPE_FILE).is_file() and (home / CHECKPOINTS).is_dir():
            logger.warning("%s is a run's, but %s is missing: its files are not checked", folder, home / STATE_FILE)
        return
    try:
        files = read_state(home).files
        if files is not None:
            mine = {name: digest for name, digest in files.items() if name.startswith(f"{folder.name}/")}
            _compare(home, mine, _names_in(folder, f"{folder.name}/"))
    except DamagedError as error:
        if in_checkpoint:
            raise RunError(f"{error}. {instead_of(home)}") from None
        raise RunError(
            f"{error}: it was changed after it was written, or the run is writing it. `limbeck train` of the run's "
            f"{RECIPE_FILE} writes it anew; a copy of the folder in another place can be used as it is."
        ) from None


def instead_of(checkpoint: Path) -> str:
    """What to use in place of a damaged checkpoint."""
    whole = newest_whole(checkpoint.parent)
    if whole is None:
        return f"No checkpoint in {checkpoint.parent} is whole: restore one from a backup."
    return f"The file was changed or damaged after it was written. The newest whole checkpoint is {whole}."


def newest_whole(checkpoints: Path) -> Path | None:
    """The newest checkpoint in the folder whose files are as they were written. Reads all of them: it takes a while."""
    for _, folder in reversed(numbered(checkpoints)):
        try:
            check_checkpoint(folder)
        except (DamagedError, OSError):
            continue
        return folder
    return None


def _is_sealed(folder: Path) -> bool:
    """Whether a run wrote `state.json` there; other programs have files of that name too."""
    path = folder / STATE_FILE
    if not path.is_file():
        return False
    if (folder / RECIPE_FILE).is_file():
        return True
    try:
        table = json.loads(read_file(path))
    except (OSError, ValueError, RecursionError):
        return True  # what cannot be read is refused, and named
    return isinstance(table, dict) and {"format", "step", "files"} <= table.keys()


def _names_in(folder: Path, prefix: str = "") -> set[str]:
    names = {prefix + p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()}
    return names - {STATE_FILE}


def _compare(folder: Path, expected: Mapping[str, str], found: set[str]) -> None:
    for name in sorted(expected.keys() - found):
        raise DamagedError(f"{folder / name} is missing")
    for name in sorted(found - expected.keys()):
        raise DamagedError(f"{folder / name} was not written with the rest")
    for name, digest in sorted(expected.items()):
        try:
            same = _digest_of_file(folder / name) == digest
        except OSError as error:
            raise DamagedError(f"{folder / name} cannot be read: {error.strerror}") from None
        if not same:
            raise DamagedError(f"{folder / name} does not match its digest")


def _digest_of_file(path: Path) -> str:
    if not path.is_file():  # a pipe would be waited for
        return "not a file"
    return sha256(path)


def _digest(table: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
