"""Recipe tables of teachers: in this process, behind a URL, or several by name.

[teacher]
kind = "sglang"
url = ["http://10.0.0.1:30000", "http://10.0.0.2:30000"]   # replicas of one model

[teacher]
kind = "routed"
default = "general"
[teacher.teachers.general]
kind = "vllm"
url = "http://10.0.0.3:8000"
[teacher.teachers.code]
kind = "local"
model = "models/code-teacher"
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from limbeck.config.base import Config, ModelConfig
from limbeck.config.factory import PythonPartConfig
from limbeck.config.values import (
    Concurrency,
    Fraction,
    HiddenDtype,
    Line,
    Name,
    Place,
    Positive,
    PositiveInt,
    Seconds,
    Urls,
)
from limbeck.config.view import SameViewConfig, ViewConfig

REMOTE_KINDS = ("sglang", "vllm", "limbeck")
REMOTE_SUPPORT = 20  # K where the recipe does not say

MethodChoice: TypeAlias = Literal["auto", "native", "baked", "rescale", "hidden"]


class SeeingConfig(Config):
    """What every teacher has: a view of the rollouts that it scores, and how many of them it must score."""

    view: ViewConfig = SameViewConfig()
    min_scored_fraction: Fraction = Field(1.0, description="share of responses that must be scored, or the step stops")


class LocalTeacherConfig(SeeingConfig, ModelConfig):
    """A teacher in this process: exact at any temperature, on any support."""

    kind: Literal["local"] = "local"
    devices: Annotated[int, Field(ge=1, le=1024)] = Field(
        1, description="GPUs that each copy of it spans: its layers lie on them one after the other"
    )
    same_chat_template: bool = Field(
        True, description="refuse a teacher with another chat template than the student, or where only one has any"
    )


class RemoteTeacherConfig(SeeingConfig):
    """A teacher behind one URL, or several replicas of one model."""

    url: Urls = Field(description="`http://host:port`, or a list of replicas of the same model")
    token_env: Line | None = Field(None, description="environment variable that holds the bearer token")
    temperature_method: MethodChoice = Field(
        "auto",
        description="how scores at the rollout temperature are obtained; auto: the first method that proves itself",
    )
    baked: Place | None = Field(
        None, description="the folder `limbeck bake` wrote, as far as the probe file in it, that the server holds"
    )
    tokenizer: Place | None = Field(None, description="the teacher's tokenizer, to compare with the student's")
    same_chat_template: bool = Field(
        True, description="refuse a `tokenizer` with another chat template, or where only one of the two has any"
    )
    vocabulary: PositiveInt | None = Field(
        None, description="rows of the teacher's output head, or more; absent: the student's and generous padding"
    )
    top_logprobs: Annotated[int, Field(ge=1, le=2**20)] = Field(
        20, description="asked for at each position by `rescale`; at least the support"
    )
    max_rescale_error: Positive = Field(0.02, description="nats; a position that is less certain is masked and counted")
    max_rescale_dropped: Fraction = Field(0.05, description="share of a step's positions that may be masked")
    max_concurrency: Concurrency = Field(32, description="requests under way at once, over all replicas")
    timeout: Seconds = Field(120.0, description="seconds for one request")
    retry_seconds: Seconds = Field(300.0, description="how long to wait for a server that is away or busy")
    trust_start: bool = Field(
        False,
        description="accept a server whose answers do not show that nothing is put before a text: models with learned "
        "positions, attention sinks or recurrent layers",
    )
    probe_tolerance: Positive = Field(
        0.02, description="nats a probe may move before the server counts as another; raise it for bfloat16 servers"
    )

    @model_validator(mode="before")
    @classmethod
    def _probe_every_is_gone(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "probe_every" in given:
            raise ValueError("probe_every is gone: a probe goes along with every step now. Leave it out")
        return given

    @property
    def urls(self) -> tuple[str, ...]:
        return (self.url,) if isinstance(self.url, str) else self.url


class StatesTeacherConfig(RemoteTeacherConfig):
    """One that can answer with final hidden states."""

    head: Place | None = Field(
        None, description="the teacher's model folder here, of which the output head is used on its hidden states"
    )
    hidden_dtype: HiddenDtype = Field(
        "float32",
        description="of the hidden states on the wire, kind `limbeck` alone; what rounding them changes is measured "
        "position by position",
    )

    @model_validator(mode="after")
    def _dtype_is_sent(self) -> Self:
        if self.hidden_dtype != "float32" and self.head is None:
            raise ValueError(
                f"hidden_dtype = {self.hidden_dtype!r}, but no hidden states are asked for: set teacher.head to the "
                "teacher's model folder, or leave hidden_dtype out"
            )
        return self


class SGLangTeacherConfig(StatesTeacherConfig):
    """SGLang's `/generate`; `head` needs a server started with `--enable-return-hidden-states`."""

    kind: Literal["sglang"] = "sglang"

    @model_validator(mode="after")
    def _sends_numbers_as_text(self) -> Self:
        if self.hidden_dtype != "float32":
            raise ValueError(
                f"hidden_dtype = {self.hidden_dtype!r}, but SGLang sends hidden states as JSON, rounded by nobody. "
                "Leave it out, or serve the teacher with `limbeck serve` (kind = 'limbeck')"
            )
        return self


class VLLMTeacherConfig(RemoteTeacherConfig):
    """vLLM's `/v1/completions`."""

    kind: Literal["vllm"] = "vllm"


class LimbeckTeacherConfig(StatesTeacherConfig):
    """`limbeck serve`: exact at any temperature; with `head`, over the whole vocabulary too."""

    kind: Literal["limbeck"] = "limbeck"


class SelfTeacherConfig(SeeingConfig):
    """The student itself, mostly with another view: as it began, as it was some updates ago, or its moving average."""

    kind: Literal["self"] = "self"
    of: Literal["start", "lagged", "average"] = Field(
        "start", description="the student as it began, as it was `lag` updates ago, or the average of its weights"
    )
    lag: Annotated[int, Field(ge=1, le=64)] | None = Field(None, description="of `lagged`: how many updates ago")
    decay: Fraction | None = Field(
        None, description="of `average`: its own share in it at every update; the student's weights have the rest"
    )

    @model_validator(mode="after")
    def _keys_are_of_what_it_is(self) -> Self:
        for key, of, example in (("lag", "lagged", "8"), ("decay", "average", "0.99")):
            given = getattr(self, key)
            if self.of == of and given is None:
                raise ValueError(f"of = {of!r} needs {key}: set teacher.{key} = {example}")
            if self.of != of and given is not None:
                raise ValueError(f"{key} = {given} goes with of = {of!r}, but of = {self.of!r}. Change one of the two.")
        return self


class DatasetTeacherConfig(Config):
    """The tokens of the data themselves, a point mass on each: supervised fine-tuning, as `limbeck sft` does it."""

    kind: Literal["dataset"] = "dataset"


class PythonTeacherConfig(SeeingConfig, PythonPartConfig):
    """A teacher of your own: the factory returns a `protocols.Teacher`. It is proven like any other."""


OneTeacherConfig: TypeAlias = Annotated[
    LocalTeacherConfig
    | SGLangTeacherConfig
    | VLLMTeacherConfig
    | LimbeckTeacherConfig
    | SelfTeacherConfig
    | PythonTeacherConfig,
    Field(discriminator="kind"),
]


class RoutedTeacherConfig(Config):
    """Several teachers by name. A prompt's `teacher` chooses; `default` scores those that name none."""

    kind: Literal["routed"] = "routed"
    default: Name | None = Field(None, description="absent: every prompt must name its teacher")
    teachers: dict[Name, OneTeacherConfig] = Field(min_length=1, max_length=1000)

    @model_validator(mode="after")
    def _default_is_there(self) -> Self:
        if self.default is not None and self.default not in self.teachers:
            raise ValueError(f"default = {self.default!r} is none of the teachers: {', '.join(sorted(self.teachers))}")
        return self


TeacherConfig: TypeAlias = Annotated[
    LocalTeacherConfig
    | SGLangTeacherConfig
    | VLLMTeacherConfig
    | LimbeckTeacherConfig
    | SelfTeacherConfig
    | DatasetTeacherConfig
    | PythonTeacherConfig
    | RoutedTeacherConfig,
    Field(discriminator="kind"),
]


def complete_teacher(given: Any) -> Any:
    """A support that the teacher can give, for a recipe that chooses none, and kind `local` for a teacher without one.

    Over the wire K tokens and the sampled one have together the expected gradient of the whole vocabulary. The
    student's own K leave less noise at equal bytes. They are the default where every server can be asked about them
    and the engine is known to report them; the teacher's K are elsewhere. A teacher of your own is asked for the least
    that every teacher has, the sampled token, and so is one with other tokens.
    """
    if not isinstance(given, Mapping):
        return given
    teacher = given.get("teacher")
    if isinstance(teacher, Mapping) and "kind" not in teacher and "url" not in teacher:
        given = {**given, "teacher": {"kind": "local", **teacher}}
    if _get(teacher, "kind") == "dataset" and "objective" not in given:
        return {**given, "objective": {"divergence": "forward_kl", "support": 1}}
    objective = given.get("objective", {})
    if not isinstance(objective, Mapping) or "support" in objective:
        return given
    if objective.get("divergence", "reverse_kl") != "reverse_kl":
        return given
    given_by = {_most(member) for member in _members(teacher)}
    retokenized = any(_get(_get(member, "view"), "kind") == "retokenized" for member in _members(teacher))
    if retokenized or given_by == {"sampled"}:
        support: Mapping[str, Any] = {"support": "sampled"}
    elif not given_by & {"top", "ids"}:
        return given
    elif given_by & {"top", "sampled"} or _get(given.get("engine"), "kind") == "python":
        support = {"support": REMOTE_SUPPORT}
    else:
        support = {"support": "student_top", "k": REMOTE_SUPPORT}
    return {**given, "objective": {"divergence": "reverse_kl", **support, **objective}}


def _members(teacher: Any) -> list[Any]:
    """The tables of a routed teacher; a list of the one table otherwise."""
    members = _get(teacher, "teachers")
    return list(members.values()) if isinstance(members, Mapping) else [teacher]


def _most(table: Any) -> Literal["all", "ids", "top", "sampled"]:
    """What of its distribution a teacher of one table is sure to give: all, any ids, its own top, one token."""
    kind = _get(table, "kind")
    if kind == "python":
        return "sampled"
    if kind not in REMOTE_KINDS or _get(table, "head"):
        return "all"
    return "ids" if kind == "limbeck" and _get(table, "temperature_method") != "rescale" else "top"


def _get(table: Any, key: str) -> Any:
    """Of a table that is written or parsed."""
    return table.get(key) if isinstance(table, Mapping) else getattr(table, key, None)
