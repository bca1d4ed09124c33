"""What every table of a recipe is: immutable, and strict about its keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt: TypeAlias = Annotated[int, Field(ge=1)]
Count: TypeAlias = Annotated[int, Field(ge=0)]
Positive: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A table of a recipe. Immutable, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _suggest_for_unknown_keys(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            for key in given:
                if key not in cls.model_fields:
                    from limbeck.config import unknown_key  # knows every table, this one among them

                    raise ValueError(unknown_key(str(key), cls))
        return given


class ModelSection(Section):
    """A Hugging Face model folder (or hub name) and how to hold it."""

    model: str = Field(description="folder or hub name; `demo:student`, `demo:teacher` are shipped")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="how the weights are held; a student trained in bfloat16 keeps float32 here"
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        "auto", description="transformers' attention implementation; auto: its own choice for the model"
    )
