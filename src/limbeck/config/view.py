"""Recipe tables of what a teacher sees of a rollout: `view` in every table of a teacher.

[teacher]
kind = "local"
model = "models/teacher"
[teacher.view]
kind = "prompted"
system = "Answer like a pirate."
"""

from __future__ import annotations

from string import Formatter
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field

from limbeck.config.base import Config
from limbeck.config.values import Place, Text
from limbeck.formatting import shown


def _columns(text: str) -> str:
    """Raises `ValueError` for braces without the name of a column in them."""
    try:
        names = [name for _, name, _, _ in Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise ValueError(f"{shown(text)} has a brace too many or too few ({error}); write {{{{ for a brace") from None
    if any(not name or name.isdecimal() for name in names):
        raise ValueError(f"{shown(text)} has braces without a column's name; write {{answer}}, or {{{{}}}} for braces")
    return text


Columns: TypeAlias = Annotated[Text, AfterValidator(_columns)]  # a text with names of columns in braces


class SameViewConfig(Config):
    """The teacher sees what the student saw: the same prompt and response, token by token."""

    kind: Literal["same"] = "same"


class ShotConfig(Config):
    """One example that the teacher is shown before the prompt."""

    prompt: Text = Field(description="what a user says")
    completion: Text = Field(description="what the assistant answers")


class PromptConfig(Config):
    """The teacher's own prompt."""

    system: Text | None = Field(None, description="system message that takes the place of the student's, if it has one")
    context: Columns | None = Field(
        None,
        description='appended to the last user message; columns of the row in braces: `"Answer: {answer}"`',
    )
    few_shot: tuple[ShotConfig, ...] = Field(
        (), max_length=1000, description="examples before the first user message: `[{prompt, completion}]`"
    )
    template: Place | None = Field(
        None, description="file of the teacher's chat template; absent: that of the teacher's tokenizer"
    )


class PromptedViewConfig(PromptConfig):
    """The teacher sees the same response after a prompt of its own."""

    kind: Literal["prompted"] = "prompted"


class RetokenizedViewConfig(PromptConfig):
    """The teacher sees the same text in its own tokens: spans that begin and end on the same bytes are compared."""

    kind: Literal["retokenized"] = "retokenized"
    accept_temperature: bool = Field(
        False,
        description="train at another temperature than 1 all the same: there two models over different tokens are no "
        "distributions over the same texts, so no divergence is minimised",
    )


ViewConfig: TypeAlias = Annotated[
    SameViewConfig | PromptedViewConfig | RetokenizedViewConfig, Field(discriminator="kind")
]
