"""What every table of a recipe is: immutable, and strict about its keys."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt: TypeAlias = Annotated[int, Field(ge=1)]
Count: TypeAlias = Annotated[int, Field(ge=0)]
Positive: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class Config(BaseModel):
    """A table of a recipe. Immutable, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    root: ClassVar[type[BaseModel] | None] = None  # the table of all tables, where a misplaced key is looked for

    @model_validator(mode="before")
    @classmethod
    def _suggest_for_unknown_keys(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and cls.model_config.get("extra") == "forbid":
            for key in given:
                if key not in cls.model_fields:
                    raise ValueError(_unknown_key(str(key), cls))
        return given


class ModelConfig(Config):
    """A Hugging Face model folder (or hub name) and how to hold it."""

    model: str = Field(description="folder or hub name; `demo:student`, `demo:teacher` are shipped")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="how the weights are held; a student trained in bfloat16 keeps float32 here"
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        "auto", description="transformers' attention implementation; auto: its own choice for the model"
    )


def keys_of(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key below a table, tables included."""
    for name, info in section.model_fields.items():
        yield prefix + name
        for nested in configs_of(info.annotation):
            yield from keys_of(nested, f"{prefix}{name}.")


def configs_of(annotation: Any) -> list[type[Config]]:
    """The `Config` classes inside a field's type: one, several for a union, or none."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [section for part in get_args(annotation) for section in configs_of(part)]


def _unknown_key(key: str, section: type[Config]) -> str:
    known = list(section.model_fields)
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    everywhere = [] if Config.root is None else dict.fromkeys(keys_of(Config.root))
    elsewhere = [path for path in everywhere if path.rpartition(".")[2] == key]
    if near:
        hint = f"Did you mean {near[0]!r}?"
    elif elsewhere:
        hint = f"There is {' and '.join(repr(path) for path in elsewhere[:3])}."
    else:
        hint = f"Known here: {', '.join(known)}."
    return f"unknown key {key!r}. {hint}"
