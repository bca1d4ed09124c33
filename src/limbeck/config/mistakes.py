"""What is wrong in a recipe, in its own words: pydantic's errors by keys, tables and kinds."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import ValidationError

from limbeck.config.base import configs_of
from limbeck.config.engine import EngineConfig
from limbeck.config.environment import EnvironmentConfig
from limbeck.config.learner import LearnerConfig
from limbeck.config.objective import ObjectiveConfig
from limbeck.config.sources import SOURCE_TAGS
from limbeck.config.task import GraderConfig, TaskConfig
from limbeck.config.teacher import TeacherConfig
from limbeck.config.tracker import TrackerConfig
from limbeck.formatting import shown

SHOWN_MISTAKES = 10
LEAST = 1e-9  # a bound below it only says that 0 is too small
NO_TABLE = ("model_type", "model_attributes_type", "dict_type")


def explain(error: ValidationError, source: str) -> str:
    """One line per mistake: where it is, what is wrong, what was given."""
    items = error.errors()
    lines = [_line(item) for item in items[:SHOWN_MISTAKES]]
    if len(items) > SHOWN_MISTAKES:
        lines.append(f"and {len(items) - SHOWN_MISTAKES} more")
    return f"{source} is not a valid recipe:\n" + "\n".join(f"  - {line}" for line in lines)


def _line(item: Mapping[str, Any]) -> str:
    tags = {"local", "hf", *SOURCE_TAGS, *_TAGS}
    where = ".".join(str(part)[:100] for part in item["loc"] if part not in tags) or "recipe"
    message, context = item["msg"].removeprefix("Value error, "), item.get("ctx", {})
    if item["type"] == "missing":
        return f"{where}: missing, and it has no default"
    if item["type"] == "union_tag_not_found":
        return f"{where}: kind is missing, and its keys do not say which is meant (got {shown(item['input'])})"
    if item["type"] == "union_tag_invalid":
        return f"{where}: {_unknown_tag(context)}"
    if item["type"] == "value_error":
        return f"{where}: {message}"
    if item["type"] in NO_TABLE:
        message = "expected a table"
    elif item["type"] == "greater_than_equal" and 0 < context["ge"] < LEAST:
        message = "Input should be above 0" if item["input"] <= 0 else f"Input should be at least {context['ge']:g}"
    return f"{where}: {message} (got {shown(item['input'])})"


def _unknown_tag(context: Mapping[str, Any]) -> str:
    """`unknown kind 'vlm'. Did you mean 'vllm'?`, or those that there are."""
    key, tag = context["discriminator"].strip("'"), str(context["tag"])
    known = re.findall(r"'([^']*)'", context["expected_tags"])
    near = difflib.get_close_matches(tag[:100], known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(known)}."
    return f"unknown {key if key.isidentifier() else 'kind'} {shown(tag)}. {hint}"


# Discriminator values appear in pydantic's error paths; a reader looks for keys.
_TAGS = {
    tag
    for section in (
        *configs_of(TaskConfig), *configs_of(ObjectiveConfig), *configs_of(GraderConfig), *configs_of(TrackerConfig),
        *configs_of(TeacherConfig), *configs_of(EngineConfig), *configs_of(LearnerConfig),
        *configs_of(EnvironmentConfig),
    )
    for name in ("kind", "divergence")
    if name in section.model_fields
    for tag in get_args(section.model_fields[name].annotation)
}  # fmt: skip
