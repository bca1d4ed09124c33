"""Tracker `tensorboard`: event files in the run's folder. `tensorboard --logdir runs` shows them.

The recipe and how the run came out are a run of their own, `hparams/`: what the HPARAMS tab has in a row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.config.recipe import Recipe
from limbeck.files.metrics_file import MetricsFile
from limbeck.trackers.background import values_of

HPARAMS = "hparams"  # folder
ASIDE = ("name", "output", "checkpoint", "record", "trackers")  # keys of a recipe that no result depends on
OUTCOMES = (  # what a row of the HPARAMS tab ends with: all of a run's numbers would be sixty columns
    "eval/accuracy", "eval/reverse_kl/exact", "eval/reverse_kl/sampled", "eval/entropy/student", "train/reward",
    "train/reverse_kl/exact", "train/reverse_kl/sampled", "train/objective", "train/response_length/mean",
    "train/tokens_per_second/step",
)  # fmt: skip


class TensorBoardSink:
    """Scalars by their names, alarms as text, the recipe as hyperparameters.

    `run` is the run's folder: what its earlier processes logged is in its `metrics.jsonl`.
    """

    def __init__(self, folder: Path, recipe: Recipe, run: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self.recipe, self.run = folder, recipe, run
        self.make: Any = SummaryWriter
        self.writer: Any = None
        self.outcome: Any = None
        self.last: dict[str, float] = {}
        self.step = self.written = 0

    def open(self, start: int) -> None:
        # What an earlier process wrote after the checkpoint is made again.
        self.writer = self.make(str(self.folder), purge_step=start + 1 if start else None)
        for path in (self.folder / HPARAMS).glob("events.out.tfevents.*"):
            path.unlink()  # TensorBoard would show the first end of a run
        self.outcome = self.make(str(self.folder / HPARAMS))
        self.outcome.file_writer.add_summary(session_start(hyperparameters(self.recipe)))
        self.step, self.written, self.last = start, 0, {}
        if start:  # a run that is finished already has no line to come
            self.last = outcomes_until(self.run / "metrics.jsonl", start)
            self._write_outcome()
        self.outcome.flush()

    def log(self, step: int, values: Mapping[str, float], alarms: tuple[str, ...]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        for alarm in alarms:
            self.writer.add_text("alarms", alarm, step)
        self.step = max(step, self.step)
        self.last |= _outcomes(values)
        if any(name.startswith("eval/") for name in values):
            self._write_outcome()

    def close(self) -> None:
        if self.written < self.step:
            self._write_outcome()
        self.outcome.file_writer.add_summary(session_end(self.step == self.recipe.steps))
        self.outcome.close()
        self.writer.close()

    def _write_outcome(self) -> None:
        """The last of each, under names of their own: in the other tabs they lie over no curve."""
        for name, value in self.last.items():
            self.outcome.add_scalar(f"final/{name}", value, self.step)
        self.outcome.flush()
        self.written = self.step


def outcomes_until(path: Path, step: int) -> dict[str, float]:
    """The last of each in a `metrics.jsonl`, which may be going on, up to a step; of one that is missing, none."""
    found: dict[str, float] = {}
    for line in MetricsFile(path).lines():
        if line["step"] <= step:
            found |= _outcomes(values_of(line))
    return found


def _outcomes(values: Mapping[str, float]) -> dict[str, float]:
    return {name: values[name] for name in OUTCOMES if name in values}


def hyperparameters(recipe: Recipe) -> dict[str, float | bool | str]:
    """Keys of the recipe and their values: "rollout.temperature" and so on. Lists are JSON; absent ones have none."""
    found: dict[str, float | bool | str] = {}

    def add(table: Mapping[str, Any], prefix: str) -> None:
        for key, value in table.items():
            if isinstance(value, dict):
                add(value, f"{prefix}{key}.")
            elif value is not None:
                found[prefix + key] = value if isinstance(value, bool | int | float | str) else json.dumps(value)

    add({key: value for key, value in recipe.model_dump(mode="json").items() if key not in ASIDE}, "")
    return found


# No experiment is described: TensorBoard takes the first one that it finds for all runs below its --logdir, and hides
# what only others have. Without one it puts together the keys and outcomes of all.


def session_start(values: Mapping[str, float | bool | str]) -> Any:
    """A summary that says which hyperparameters a run has."""
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    info = plugin_data_pb2.SessionStartInfo()
    for key, value in values.items():
        if isinstance(value, bool):
            info.hparams[key].bool_value = value
        elif isinstance(value, str):
            info.hparams[key].string_value = value
        else:
            info.hparams[key].number_value = value
    return _summary(metadata.SESSION_START_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_start_info=info))


def session_end(finished: bool) -> Any:
    """A summary that says how a run ended."""
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    status = api_pb2.Status.Value("STATUS_SUCCESS" if finished else "STATUS_FAILURE")
    info = plugin_data_pb2.SessionEndInfo(status=status)
    return _summary(metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=info))


def _summary(tag: str, data: Any) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams import metadata

    return Summary(value=[Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data))])
