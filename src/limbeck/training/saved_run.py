"""A run's folder read from Python, in progress or finished: `limbeck.load_run("runs/demo").metrics`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.config.recipe import Recipe, load_recipe
from limbeck.errors import RunError
from limbeck.files.digests import RECIPE_FILE
from limbeck.files.names import numbered
from limbeck.formatting import shown
from limbeck.training.run_folder import RunFolder

if TYPE_CHECKING:
    from pandas import DataFrame
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_run(path: str | Path) -> SavedRun:
    """The run in the folder `path`. Raises `RunError` where there is none."""
    if not isinstance(path, str | Path):
        raise RunError(f"the run is {shown(path)} ({type(path).__name__}), expected the path of its folder")
    folder = Path(path)
    if not (folder / RECIPE_FILE).is_file():
        raise RunError(f"{folder} is not a run folder: it has no {RECIPE_FILE}. Give one that `limbeck train` wrote.")
    return SavedRun(folder)


@dataclass(frozen=True)
class SavedRun:
    """Each property reads the folder anew, as a run in progress goes on."""

    folder: Path

    @property
    def recipe(self) -> Recipe:
        """As resolved, every default written out. Raises `RecipeError` for one of another version of Limbeck."""
        return load_recipe(self.folder / RECIPE_FILE)

    @property
    def metrics(self) -> DataFrame:
        """The lines of `metrics.jsonl`, one row each: `kind` is `train` or `eval`; NaN where a line has no such key.

        The page *Files and metrics of a run* says what the columns are. Raises `RunError` for a
        damaged file, and without pandas.
        """
        frame: DataFrame = _pandas().DataFrame(RunFolder(self.folder).lines())
        return frame

    @property
    def rollouts(self) -> DataFrame:
        """The recorded rollouts of all steps, one row each; columns of tokens hold arrays.

        Raises `RunError` for a damaged file, and without pandas.
        """
        _pandas()
        import pyarrow as pa
        import pyarrow.parquet as pq

        from limbeck.training.recording import SUFFIX, schema

        tables = [schema().empty_table()]
        for _, path in numbered(self.folder / "rollouts", SUFFIX):
            try:
                tables.append(pq.read_table(path))
            except FileNotFoundError:  # thinned out by the run meanwhile
                continue
            except (OSError, pa.ArrowException) as error:
                raise RunError(f"{path} cannot be read: {str(error).splitlines()[0]}. Remove it.") from None
        frame: DataFrame = pa.concat_tables(tables, promote_options="permissive").to_pandas()
        return frame

    def model(self) -> PreTrainedModel:
        """The newest student, adapters merged in, on the CPU in the dtype it is saved in.

        Raises `RunError` where there is none yet, or where the checkpoint is damaged.
        """
        from transformers import AutoModelForCausalLM

        from limbeck.learners.export import newest_model

        with newest_model(self.folder) as folder:
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        return model

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The student's, which training does not change."""
        from limbeck.models.loading import load_tokenizer

        return load_tokenizer(self.recipe.student.model)


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise RunError("data frames need pandas: pip install 'limbeck[notebook]'") from None
    return pandas
