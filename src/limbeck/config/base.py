"""What every table of a recipe is: immutable, and strict about its keys."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from limbeck.config.aliases import known_as
from limbeck.config.values import Place, fault_of
from limbeck.errors import RecipeError
from limbeck.formatting import shown


class Config(BaseModel):
    """A table of a recipe. Immutable, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), serialize_by_alias=True)
    root: ClassVar[type[BaseModel] | None] = None  # the table of all tables, where a misplaced key is looked for

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy, with the values of `update` checked as a recipe's are. Raises `RecipeError`."""
        copy = super().model_copy(deep=deep)
        if not update:
            return copy
        keys = {name: info.alias or name for name, info in type(self).model_fields.items()}
        changed = {keys.get(name, name): value for name, value in update.items()}
        kept = {key: getattr(copy, name) for name, key in keys.items() if key not in changed}
        try:
            checked = type(self).model_validate({**kept, **changed})
        except ValidationError as error:
            from limbeck.config.mistakes import explain  # it knows all tables, and they are made of this one

            raise RecipeError(explain(error, f"the copy of this {type(self).__name__}")) from None
        given = self.model_fields_set | {name for name, key in keys.items() if key in changed}
        object.__setattr__(checked, "__pydantic_fields_set__", given)  # defaults stay defaults
        return checked

    @model_validator(mode="before")
    @classmethod
    def _suggest_for_unknown_keys(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and cls.model_config.get("extra") == "forbid":
            for key in given:
                if key not in fields_of(cls):
                    raise ValueError(_unknown_key(str(key), cls))
        return given

    @model_validator(mode="before")
    @classmethod
    def _refuse_booleans_as_numbers(cls, given: Any) -> Any:
        """Pydantic takes `true` for 1."""
        for key, value in given.items() if isinstance(given, Mapping) else ():
            field = fields_of(cls).get(key)
            values = value if isinstance(value, list | tuple) else [value]
            if field is not None and any(isinstance(item, bool) for item in values):
                types = set(_plain_types(field.annotation))
                if types & {int, float} and bool not in types:
                    raise ValueError(f"{key} is {shown(value).lower()}, expected a number")
        return given

    @model_validator(mode="before")
    @classmethod
    def _show_how_tables_are_listed(cls, given: Any) -> Any:
        """`trackers=wandb`: Pydantic would ask for a tuple."""
        for key, value in given.items() if isinstance(given, Mapping) else ():
            field = fields_of(cls).get(key)
            if field is None or get_origin(field.annotation) is not tuple or not configs_of(field.annotation):
                continue
            if not isinstance(value, list | tuple) or any(isinstance(item, str) for item in value):
                raise ValueError(f"{key} is {shown(value)}, expected a list of tables{_example(key, value, field)}")
        return given

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_no_value_may_be(cls, given: Any) -> Any:
        """The last of these validators, so the first that runs: the others see values of bounded size."""
        if isinstance(given, Mapping) and (fault := fault_of(given)):
            raise ValueError(fault)
        return given


class ModelConfig(Config):
    """A Hugging Face model folder (or hub name) and how to hold it."""

    model: Place = Field(description="folder or hub name; `demo:student`, `demo:teacher` are shipped")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="how the weights are held")
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        "auto", description="transformers' attention implementation; auto: its own choice for the model"
    )


def fields_of(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a table by their keys in a recipe, such as `from`, which no attribute can be called."""
    return {info.alias or name: info for name, info in section.model_fields.items()}


def keys_of(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key below a table, tables included. `NAME` is a name that the recipe chooses."""
    for name, info in fields_of(section).items():
        yield prefix + name
        below = f"{prefix}{name}.NAME." if get_origin(info.annotation) is dict else f"{prefix}{name}."
        for nested in configs_of(info.annotation):
            yield from keys_of(nested, below)


def configs_of(annotation: Any) -> list[type[Config]]:
    """The `Config` classes inside a field's type: one, several for a union, or none."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [section for part in get_args(annotation) for section in configs_of(part)]


def _plain_types(annotation: Any) -> Iterator[Any]:
    """The types without parts inside a field's type, such as int of `tuple[Annotated[int, ...], ...] | None`."""
    parts = get_args(annotation)
    if not parts:
        yield annotation
    for part in parts:
        yield from _plain_types(part)


def _example(key: str, given: Any, field: FieldInfo) -> str:
    """` such as trackers=[{kind="wandb"}]`, with the kind that was given where it is one."""
    kinds = {
        value: tag
        for section in configs_of(field.annotation)
        for tag, info in fields_of(section).items()
        if get_origin(info.annotation) is Literal
        for value in get_args(info.annotation)
        if tag in ("kind", "from")
    }
    table = list(given.values()) if isinstance(given, Mapping) else given
    names = [name for name in (table if isinstance(table, list | tuple) else [table]) if isinstance(name, str)]
    listed = [name for name in names if name in kinds] or list(kinds)[:1]
    tables = ", ".join(f'{{{kinds[name]} = "{name}"}}' for name in listed)
    return f": {key}=[{tables}]" if listed else ""


def _kinds_with(key: str, section: type[Config]) -> list[str]:
    """The other kinds of this table that have the key, such as `kind = 'file'`."""
    kinds = []
    for siblings in _unions(Config.root) if Config.root else ():
        for sibling in siblings if section in siblings else ():
            for tag in ("kind", "divergence"):
                if key in fields_of(sibling) and tag in sibling.model_fields:
                    kinds += [f"{tag} = {value!r}" for value in get_args(sibling.model_fields[tag].annotation)]
    return list(dict.fromkeys(kinds))


def _unions(section: type[BaseModel]) -> Iterator[list[type[Config]]]:
    for info in section.model_fields.values():
        configs = configs_of(info.annotation)
        yield configs
        for nested in configs:
            yield from _unions(nested)


def _unknown_key(key: str, section: type[Config]) -> str:
    known = list(fields_of(section))
    near = difflib.get_close_matches(key[:100], known, n=1, cutoff=0.6)
    everywhere = [] if Config.root is None else dict.fromkeys(keys_of(Config.root))
    found = [path for path in everywhere if path.rpartition(".")[2] == key]
    elsewhere = [path for path in found if ".NAME." not in path] or found
    if alias := known_as(key):
        hint = alias
    elif near:
        hint = f"Did you mean {near[0]!r}?"
    elif kinds := _kinds_with(key, section):
        hint = f"It goes with {' or '.join(kinds[:3])}."
    elif elsewhere:
        hint = f"There is {' and '.join(repr(path) for path in elsewhere[:3])}."
    else:
        hint = f"Known here: {', '.join(known)}."
    return f"unknown key {shown(key)}. {hint}"
