"""Tasks: prompts to answer, and how to grade a response.

    task = load_task(recipe.task, build, longest_prompt=256 - 32)
    task.train[0].text                            "347+586="
    task.grade(task.train[0], "...;0933")         1.0

Every task has `train`, `held_out`, `grade` and `dropped`, the number of prompts dropped because
they were too long. Importing this package imports neither torch nor any optional package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from limbeck import protocols
from limbeck.config import task as config
from limbeck.config.factory import Build, build_part
from limbeck.errors import DataError, RecipeError
from limbeck.tasks.agent import agent_rows
from limbeck.tasks.arithmetic import Arithmetic
from limbeck.tasks.digest import digest_of_prompts, digests_of_prompts, first_changed_prompt
from limbeck.tasks.files import EvaluationRows, Rows
from limbeck.tasks.graders import Exact, Grader, Numeric, PythonFunction, Regex
from limbeck.tasks.math_verify import MathVerify
from limbeck.tasks.mixture import Mixture, Named
from limbeck.tasks.prompts import Encoder, encoder_of, fit
from limbeck.tasks.python import PythonTask
from limbeck.tasks.reasoning_gym import ReasoningGym
from limbeck.tasks.sources import all_of_dataset, all_of_file, of_dataset, of_file

__all__ = [
    "PythonTask",
    "digest_of_prompts",
    "digests_of_prompts",
    "first_changed_prompt",
    "load_eval_task",
    "load_task",
]


def load_eval_task(
    name: str, section: config.EvalTaskConfig, build: Build, longest_prompt: int | None
) -> protocols.Task:
    """The task of an evaluation set, whose `held_out` are to be answered. Raises as `load_task`, with the place."""
    return Named(name, _part(f"eval.sets.{name}.task", section, build, longest_prompt))


def _part(
    where: str, section: config.TaskConfig | config.EvalTaskConfig, build: Build, longest_prompt: int | None
) -> protocols.Task:
    """A task whose table is not `[task]`. Messages say `task.` of it all the same, so they begin with where it is."""
    try:
        return load_task(section, build, longest_prompt)
    except (DataError, RecipeError) as error:
        raise type(error)(f"{where}: {error}") from error.__cause__


def load_task(
    section: config.TaskConfig | config.EvalTaskConfig, build: Build, longest_prompt: int | None
) -> protocols.Task:
    """The task a recipe's `[task]` table asks for.

    `longest_prompt` is in tokens: the context length minus `rollout.max_tokens`, or None for no
    limit. Raises `DataError` for everything that is wrong with the data, the grader or a prompt,
    and where an optional package is missing.
    """
    return LOADERS[type(section)](section, build, longest_prompt)


def _arithmetic(section: config.ArithmeticTaskConfig, build: Build, longest_prompt: int | None) -> protocols.Task:
    task = Arithmetic(section, Encoder(build.tokenizer, chat=False).text, build.seed)
    fit([*task.train, *task.held_out], longest_prompt, too_long="error", may_drop=False)
    return task


def _file(section: config.FileTaskConfig, build: Build, longest_prompt: int | None) -> protocols.Task:
    encoder = encoder_of(section, build.tokenizer)
    return Rows(section, *of_file(section), encoder, load_grader(section.grader), build.seed, longest_prompt)


def _dataset(section: config.DatasetTaskConfig, build: Build, longest_prompt: int | None) -> protocols.Task:
    encoder = encoder_of(section, build.tokenizer)
    return Rows(section, *of_dataset(section), encoder, load_grader(section.grader), build.seed, longest_prompt)


def _agent(section: config.AgentTaskConfig, build: Build, longest_prompt: int | None) -> protocols.Task:
    rows = section.rows
    encoder = encoder_of(section, build.tokenizer)
    sources = of_file(rows) if isinstance(rows, config.FileTaskConfig) else of_dataset(rows)
    train, held_out = (None if source is None else agent_rows(source, rows.columns) for source in sources)
    assert train is not None
    return Rows(rows, train, held_out, encoder, load_grader(section.grader), build.seed, longest_prompt)


def _reasoning_gym(section: config.ReasoningGymTaskConfig, build: Build, longest_prompt: int | None) -> protocols.Task:
    encoder = Encoder(build.tokenizer, section.chat, section.system, section.template_options)
    return ReasoningGym(section, encoder, build.seed, longest_prompt)


def _evaluation_file(section: config.EvalFileConfig, build: Build, longest_prompt: int | None) -> protocols.Task:
    encoder, source = encoder_of(section, build.tokenizer), all_of_file(section.path)
    return EvaluationRows(section, source, encoder, load_grader(section.grader), longest_prompt)


def _evaluation_dataset(section: config.EvalDatasetConfig, build: Build, longest_prompt: int | None) -> protocols.Task:
    encoder, source = encoder_of(section, build.tokenizer), all_of_dataset(section)
    return EvaluationRows(section, source, encoder, load_grader(section.grader), longest_prompt)


def _mixture(section: config.MixtureTaskConfig, build: Build, longest_prompt: int | None) -> protocols.Task:
    tasks = {name: _part(f"task.tasks.{name}", one, build, longest_prompt) for name, one in section.tasks.items()}
    return Mixture(tasks, section.weights or dict.fromkeys(tasks, 1.0))


def _python(section: config.PythonTaskConfig, build: Build, longest_prompt: int | None) -> protocols.Task:
    vocabulary = None if build.info is None else build.info.vocabulary
    return PythonTask(build_part(section, "task", build), section.factory, longest_prompt, vocabulary)


LOADERS: dict[type, Callable[[Any, Build, int | None], protocols.Task]] = {
    config.ArithmeticTaskConfig: _arithmetic,
    config.FileTaskConfig: _file,
    config.DatasetTaskConfig: _dataset,
    config.AgentTaskConfig: _agent,
    config.ReasoningGymTaskConfig: _reasoning_gym,
    config.PythonTaskConfig: _python,
    config.EvalFileConfig: _evaluation_file,
    config.EvalDatasetConfig: _evaluation_dataset,
    config.MixtureTaskConfig: _mixture,
}


def load_grader(section: config.GraderConfig | None) -> Grader | None:
    """The grader a recipe's `[task.grader]` table asks for. Raises `DataError`, and `RecipeError` for a wrong name."""
    return None if section is None else GRADERS[type(section)](section)


GRADERS: dict[type, Callable[[Any], Grader]] = {
    config.ExactGraderConfig: lambda section: Exact(section.ignore_case),
    config.NumericGraderConfig: lambda section: Numeric(section.tolerance),
    config.RegexGraderConfig: lambda section: Regex(section.pattern, section.ignore_case),
    config.MathVerifyGraderConfig: lambda section: MathVerify(),
    config.PythonGraderConfig: lambda section: PythonFunction(section.function),
}
