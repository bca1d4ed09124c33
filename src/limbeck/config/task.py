"""The task tables of a recipe: where prompts come from, and how responses are graded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from limbeck.config.base import Config
from limbeck.config.factory import PythonPartConfig
from limbeck.config.values import Line, Name, NonNegative, Pattern, Place, Positive, Text
from limbeck.formatting import shown

Prompts: TypeAlias = Annotated[int, Field(ge=1, le=10**6)]  # that are made, or held out, and kept in memory
NOT_OPTIONS = {  # of `apply_chat_template`: what Limbeck decides itself, and where
    "messages": "the row's messages",
    "conversation": "the row's messages",
    "tools": "task.columns.tools",
    "chat_template": "the tokenizer's chat_template",
    "continue_final_message": "task.continue_final_message",
    "add_generation_prompt": "task.continue_final_message",
    **dict.fromkeys(
        ("tokenize", "return_dict", "return_tensors", "return_assistant_tokens_mask", "tokenizer_kwargs", "padding",
         "truncation", "max_length"),
        "what Limbeck needs: the ids of the whole prompt",
    ),
}  # fmt: skip


def check_template_options(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Raises `ValueError` for an option that is not the template's own to read."""
    if taken := next((name for name in options if name in NOT_OPTIONS), None):
        raise ValueError(f"template_options.{taken} cannot be set: it follows from {NOT_OPTIONS[taken]}. Remove it.")
    return options


TemplateOptions: TypeAlias = Annotated[dict[str, Any], AfterValidator(check_template_options)]


class ExactGraderConfig(Config):
    """1 where the response equals the answer, white space and case aside as asked."""

    kind: Literal["exact"] = "exact"
    ignore_case: bool = Field(False, description="upper and lower case are the same")


class NumericGraderConfig(Config):
    """1 where the last number of the response equals the answer within a relative tolerance.

    An answer is one number: 72, -3/4, 2 1/2, \\frac{3}{4}, 3\\times 10^{5}, $1,234.50, 50%, "72 apples", or "#### 72"
    after a worked solution. Data with any other answer is refused: take `math_verify`.
    """

    kind: Literal["numeric"] = "numeric"
    tolerance: NonNegative = Field(1e-9, description="relative to the larger of 1 and the answer")


class RegexGraderConfig(Config):
    """1 where the first group of the last match of `pattern` equals the answer."""

    kind: Literal["regex"] = "regex"
    pattern: Pattern = Field(description="must have exactly one group")
    ignore_case: bool = Field(False, description="upper and lower case are the same")

    @model_validator(mode="after")
    def _has_one_group(self) -> Self:
        groups = re.compile(self.pattern).groups
        if groups != 1:
            raise ValueError(f"pattern {shown(self.pattern)} has {groups} groups; exactly one is expected")
        return self


class MathVerifyGraderConfig(Config):
    """Symbolic equality by the `math-verify` package (extra `math`)."""

    kind: Literal["math_verify"] = "math_verify"


class PythonGraderConfig(Config):
    """Your own function: `grade(prompt: Prompt, response: str) -> float | None`."""

    kind: Literal["python"] = "python"
    function: Line = Field(description="`package.module:name`")


GraderConfig: TypeAlias = Annotated[
    ExactGraderConfig | NumericGraderConfig | RegexGraderConfig | MathVerifyGraderConfig | PythonGraderConfig,
    Field(discriminator="kind"),
]


class ArithmeticTaskConfig(Config):
    """Addition with a column-by-column scratchpad, made up as needed and graded exactly."""

    kind: Literal["arithmetic"] = "arithmetic"
    digits: Annotated[int, Field(ge=1, le=8)] = Field(3, description="of each operand")
    train: Prompts = Field(4096, description="prompts to train on")
    held_out: Prompts = Field(256, description="prompts to evaluate on; disjoint from `train`")


class ColumnsConfig(Config):
    """Which columns of a data set mean what. A dotted name, `reward_model.ground_truth`, is in a table or JSON text.

    The layouts of TRL, verl and slime are recognised: see the guide *Your data*.
    """

    prompt: Line = Field("prompt", description="text to continue, or a chat")
    messages: Line = Field("messages", description="chat, through the model's chat template; JSON text too")
    tools: Line = Field(
        "tools", description="JSON schemas of tools, for the chat template: a list, or the same as text"
    )
    template_options: Line = Field(
        "chat_template_kwargs", description="a table of options of the chat template, over `task.template_options`"
    )
    answer: Line | None = Field(
        None,
        description="what graders compare with; numbers keep the text of a JSON file; absent: `answer`, or as verl and "
        "slime have it",
    )
    id: Line | None = Field(
        None, description="unique name; absent: `id`, or as verl has it; the row number where there is none"
    )
    teacher: Line = Field("teacher", description="route, where there are several teachers")


class _PromptsConfig(Config):
    """How rows become prompts, and how responses are graded."""

    columns: ColumnsConfig = ColumnsConfig()
    chat: bool = Field(True, description="put `prompt` texts through the chat template, where there is one")
    system: Text | None = Field(None, description="system message put before each chat")
    template_options: TemplateOptions = Field(
        default_factory=dict, description="variables of the chat template, such as `{enable_thinking = false}`"
    )
    continue_final_message: bool = Field(
        False, description="messages that end with the assistant's are continued, not answered"
    )
    too_long: Literal["error", "drop"] = Field(
        "error", description="what to do with prompts that leave no room for max_tokens; drops are counted"
    )
    grader: GraderConfig | None = Field(None, description="none: answers are not graded")


class _RowsConfig(_PromptsConfig):
    held_out: Prompts = Field(64, description="rows kept for evaluation, chosen by the seed")


class FileTaskConfig(_RowsConfig):
    """JSONL or Parquet files."""

    kind: Literal["file"] = "file"
    path: Place = Field(description="`*.jsonl` or `*.parquet` to train on")
    held_out_path: Place | None = Field(
        None, description="a file of its own to evaluate on; then `held_out` rows of it"
    )


class DatasetTaskConfig(_RowsConfig):
    """A Hugging Face `datasets` data set (extra `data`)."""

    kind: Literal["dataset"] = "dataset"
    name: Place = Field(description="hub name, or a folder written by `save_to_disk`")
    config: Line | None = Field(None, description="configuration of the data set, such as `main`")
    split: Line = Field("train", description="the split to train on")
    held_out_split: Line | None = Field(None, description="a split of its own to evaluate on")


class EvalFileConfig(_PromptsConfig):
    """A JSONL or Parquet file, all rows of it, to evaluate on."""

    kind: Literal["file"] = "file"
    path: Place = Field(description="`*.jsonl` or `*.parquet`")


class EvalDatasetConfig(_PromptsConfig):
    """A split of a Hugging Face `datasets` data set (extra `data`), all rows of it, to evaluate on."""

    kind: Literal["dataset"] = "dataset"
    name: Place = Field(description="hub name, or a folder written by `save_to_disk`")
    config: Line | None = Field(None, description="configuration of the data set, such as `main`")
    split: Line = Field("test", description="the split to evaluate on")


class AgentTaskConfig(_RowsConfig):
    """Your own agent: a Python function that is called once for each rollout, in a process of its own.

    Rows are those of kind `file` (`path`) or `dataset` (`name`); a row needs no prompt. What the function returns is
    the reward, or a text for the grader.
    """

    kind: Literal["agent"] = "agent"
    function: Line = Field(description="`package.module:name`, found from the working folder and PYTHONPATH")
    interpreter: Place | None = Field(
        None, description="Python that runs it, such as a virtual environment's; absent: Limbeck's own"
    )
    memory_mb: Annotated[int, Field(ge=64, le=2**24)] = Field(4096, description="the most that one rollout may have")
    path: Place | None = Field(None, description="`*.jsonl` or `*.parquet` to train on")
    held_out_path: Place | None = Field(None, description="a file of its own to evaluate on")
    name: Place | None = Field(None, description="hub name, or a folder written by `save_to_disk`")
    config: Line | None = Field(None, description="configuration of the data set, such as `main`")
    split: Line | None = Field(None, description="the split of the data set to train on; absent: `train`")
    held_out_split: Line | None = Field(None, description="a split of its own to evaluate on")

    @model_validator(mode="after")
    def _has_rows(self) -> Self:
        if (self.path is None) == (self.name is None):
            raise ValueError("give path, a file of rows, or name, a data set: one of the two")
        given, others = ("path", ("config", "split", "held_out_split")) if self.path else ("name", ("held_out_path",))
        if wrong := [key for key in others if getattr(self, key) is not None]:
            raise ValueError(f"{wrong[0]} does not go with {given}. Remove it.")
        return self

    @property
    def rows(self) -> FileTaskConfig | DatasetTaskConfig:
        """The table that reads the same rows."""
        kind = DatasetTaskConfig if self.path is None else FileTaskConfig
        given = {key: getattr(self, key) for key in kind.model_fields if key != "kind"}
        return kind.model_validate({key: value for key, value in given.items() if value is not None})


class ReasoningGymTaskConfig(Config):
    """A generated task of the `reasoning-gym` package (extra `gym`), graded by its own verifier."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    name: Line = Field(description="a reasoning-gym data set, such as `basic_arithmetic`")
    options: dict[str, Any] = Field(default_factory=dict, description="passed to its config")
    chat: bool = Field(True, description="put prompts through the chat template, where there is one")
    system: Text | None = Field(None, description="system message put before each chat")
    template_options: TemplateOptions = Field(
        default_factory=dict, description="variables of the chat template, such as `{enable_thinking = false}`"
    )
    train: Prompts = Field(4096, description="prompts to train on")
    held_out: Prompts = Field(256, description="prompts to evaluate on; disjoint from `train`")
    too_long: Literal["error", "drop"] = Field(
        "error", description="what to do with prompts that leave no room for max_tokens; drops are counted"
    )


class PythonTaskConfig(PythonPartConfig):
    """A task of your own: the factory returns an object with `train`, `held_out` and `grade` (`protocols.Task`)."""


OneTaskConfig: TypeAlias = Annotated[
    ArithmeticTaskConfig | FileTaskConfig | DatasetTaskConfig | ReasoningGymTaskConfig | PythonTaskConfig,
    Field(discriminator="kind"),
]


class MixtureTaskConfig(Config):
    """Several tasks by name. Each gives its share of the prompts, by a rule that follows from the step alone."""

    kind: Literal["mixture"] = "mixture"
    tasks: dict[Name, OneTaskConfig] = Field(min_length=1, max_length=1000)
    weights: dict[Name, Positive] = Field(
        default_factory=dict, description="`{math = 3, code = 1}`: shares of the prompts; absent: equal ones"
    )

    @model_validator(mode="after")
    def _weights_are_of_tasks(self) -> Self:
        if self.weights and set(self.weights) != set(self.tasks):
            raise ValueError(
                f"weights are of {', '.join(sorted(self.weights))}, but the tasks are {', '.join(sorted(self.tasks))}. "
                "Give each task a weight, or remove weights for equal shares."
            )
        return self


TaskConfig: TypeAlias = Annotated[
    ArithmeticTaskConfig
    | FileTaskConfig
    | DatasetTaskConfig
    | AgentTaskConfig
    | ReasoningGymTaskConfig
    | PythonTaskConfig
    | MixtureTaskConfig,
    Field(discriminator="kind"),
]
EvalTaskConfig: TypeAlias = Annotated[
    ArithmeticTaskConfig | EvalFileConfig | EvalDatasetConfig | ReasoningGymTaskConfig | PythonTaskConfig,
    Field(discriminator="kind"),
]
