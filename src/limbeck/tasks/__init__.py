"""Tasks: prompts to answer, and how to mark an answer.

    task = load_task(recipe.task, tokenizer, seed=0, longest_prompt=256 - 32)
    task.train[0].text                            "347+586="
    task.grade(task.train[0], "...;0933")         1.0

Every task has `train`, `held_out`, `grade` and `dropped`, the number of prompts left out because
they were too long. Importing this package imports neither torch nor any optional package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from limbeck import protocols
from limbeck.config import task as config_tasks
from limbeck.tasks.arithmetic import Arithmetic
from limbeck.tasks.files import Rows, of_dataset, of_file
from limbeck.tasks.graders import Exact, Grader, Numeric, PythonFunction, Regex
from limbeck.tasks.math_verify import MathVerify
from limbeck.tasks.prompts import Encoder, fit
from limbeck.tasks.reasoning_gym import ReasoningGym

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["load_task"]


def load_task(
    section: config_tasks.TaskConfig, tokenizer: PreTrainedTokenizerBase, seed: int, longest_prompt: int | None
) -> protocols.Task:
    """The task a recipe's `[task]` table asks for.

    `longest_prompt` is in tokens: the context length minus `rollout.max_tokens`, or None for no
    limit. Raises `DataError` for everything that is wrong with the data, the grader or a prompt,
    and where an optional package is missing.
    """
    if isinstance(section, config_tasks.ArithmeticTaskConfig):
        arithmetic = Arithmetic(section, Encoder(tokenizer, chat=False).text, seed)
        fit([*arithmetic.train, *arithmetic.held_out], longest_prompt, too_long="error", may_drop=False)
        return arithmetic
    encoder = Encoder(tokenizer, section.chat, section.system)
    if isinstance(section, config_tasks.ReasoningGymTaskConfig):
        return ReasoningGym(section, encoder, seed, longest_prompt)
    if isinstance(section, config_tasks.FileTaskConfig):
        source, held_out_source = of_file(section)
    elif isinstance(section, config_tasks.DatasetTaskConfig):
        source, held_out_source = of_dataset(section)
    else:
        assert_never(section)
    grader = _grader(section.grader)
    return Rows(section, source, held_out_source, encoder, grader, seed, longest_prompt)


def _grader(section: config_tasks.GraderConfig | None) -> Grader | None:
    if section is None:
        return None
    if isinstance(section, config_tasks.ExactGraderConfig):
        return Exact(section.ignore_case)
    if isinstance(section, config_tasks.NumericGraderConfig):
        return Numeric(section.tolerance)
    if isinstance(section, config_tasks.RegexGraderConfig):
        return Regex(section.pattern, section.ignore_case)
    if isinstance(section, config_tasks.MathVerifyGraderConfig):
        return MathVerify()
    if isinstance(section, config_tasks.PythonGraderConfig):
        return PythonFunction(section.function)
    assert_never(section)
