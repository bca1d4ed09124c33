"""From a run's folder to a model that others load: full weights in a dtype, or the adapter alone."""

from __future__ import annotations

import secrets
import shutil
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from limbeck.config.base import ModelConfig
from limbeck.errors import RunError
from limbeck.files.digests import (
    CHECKPOINTS,
    RECIPE_FILE,
    DamagedError,
    check_checkpoint,
    check_model_folder,
    instead_of,
)
from limbeck.files.disk import disk_errors, flush_tree
from limbeck.files.names import numbered, step_of
from limbeck.learners.adapters import open_adapters
from limbeck.learners.checkpoint import ADAPTER_FOLDER, LEARNER_FILE, MODEL_FOLDER, check_weights, weights_of
from limbeck.learners.policy import LocalPolicy, torch_dtype
from limbeck.models.causal_lm import first_line
from limbeck.models.loading import load_model


def export(run: Path, out: Path, dtype: str = "float32", adapter: bool = False) -> Path:
    """Write the newest weights of a run, or of one of its checkpoints, to `out`; the folder they came from.

    A model folder with tokenizer, adapters merged in; with `adapter` the adapter in peft's format. Raises `RunError`
    where there are no such weights, where the base of an adapter has changed, and where `out` is not empty.
    """
    torch_dtype(dtype)
    source = newest_weights(run)
    if adapter and not (source / ADAPTER_FOLDER).is_dir():
        raise RunError(
            f"{source} holds full weights and no adapter: the run was made without learner.lora, or only its merged "
            "model is left. Leave out --adapter."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} exists and is not an empty folder. Give another one.")
    policy = _open(source, run, adapter)
    _write(out, lambda folder: (policy.save_adapter if adapter else policy.save)(folder, dtype))
    return source


def newest_weights(run: Path) -> Path:
    """The folder with the newest `model/` or `adapter/`: the last checkpoint, else the finished run's own.

    Raises `RunError` where there is none, or where the last checkpoint is damaged.
    """
    if not run.is_dir():
        raise RunError(f"no run folder at {run}. Give one that `limbeck train` wrote, such as runs/demo.")
    if _is_checkpoint(run):
        return _whole(run)
    for folder in (*(_whole(path) for _, path in numbered(run / CHECKPOINTS)[-1:]), run):
        if (folder / ADAPTER_FOLDER).is_dir() or (folder / MODEL_FOLDER).is_dir():
            return folder
    if not (run / RECIPE_FILE).is_file():
        raise RunError(f"{run} is not a run folder: it has no {RECIPE_FILE}. Give one that `limbeck train` wrote.")
    raise RunError(f"{run} has no checkpoint and no {MODEL_FOLDER}/ yet. Let it train up to its first checkpoint.")


@contextmanager
def newest_model(run: Path) -> Iterator[Path]:
    """The folder of a run's newest model, whole; where there is only an adapter, one that is merged for the while.

    Raises `RunError` as `newest_weights` does.
    """
    source = newest_weights(run)
    if (source / MODEL_FOLDER).is_dir():
        yield source / MODEL_FOLDER
        return
    with TemporaryDirectory() as scratch:
        export(run, Path(scratch) / MODEL_FOLDER)
        yield Path(scratch) / MODEL_FOLDER


def _open(source: Path, run: Path, adapter: bool) -> LocalPolicy:
    """The weights in `source`, on the CPU. A merged model is taken as it is, unless the adapter is asked for."""
    cpu = torch.device("cpu")
    if not adapter and (source / MODEL_FOLDER).is_dir():
        return LocalPolicy(load_model(ModelConfig(model=str(source / MODEL_FOLDER)), cpu))
    lm = load_model(_base(run), cpu)
    check_model_folder(source / ADAPTER_FOLDER)
    adapters = open_adapters(lm, source / ADAPTER_FOLDER)
    if (source / LEARNER_FILE).is_file():
        check_weights(source / LEARNER_FILE, weights_of(lm, adapters))
    return LocalPolicy(lm, adapters=adapters)


def _whole(checkpoint: Path) -> Path:
    """Raises `RunError` where its files are not those that were written."""
    try:
        check_checkpoint(checkpoint)
    except DamagedError as error:
        raise RunError(f"{error}. {instead_of(checkpoint)}") from None
    return checkpoint


def _is_checkpoint(folder: Path) -> bool:
    """By its name, or, of one that was copied somewhere else, by the learner's state."""
    return step_of(folder.name) is not None or (folder / LEARNER_FILE).is_file()


def _base(run: Path) -> ModelConfig:
    """The model that the run began with, in the dtype that it was held in."""
    paths = [run / RECIPE_FILE, run.resolve().parent.parent / RECIPE_FILE]  # of a run, or of the run of a checkpoint
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise RunError(f"{run} has no {RECIPE_FILE}, so the model that its adapter belongs to is not known.")
    try:
        student = tomllib.loads(path.read_text(encoding="utf-8"))["student"]
        return ModelConfig(model=str(student["model"]), dtype=student.get("dtype", "float32"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{path} does not name the model of the student: {first_line(error)}") from error


def _write(out: Path, write: Callable[[Path], None]) -> None:
    """`out` is there whole or not at all."""
    half = out.resolve().with_name(f".{out.resolve().name}.{secrets.token_hex(4)}.half")  # another export's is its own
    try:
        with disk_errors(f"cannot write {out}"):
            half.mkdir(parents=True)
            write(half)
            flush_tree(half)
            half.replace(out)
    finally:
        shutil.rmtree(half, ignore_errors=True)
