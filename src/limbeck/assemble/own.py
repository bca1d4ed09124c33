"""Parts of the user's own at their door: what is missing, what they raise, and whether they answer what was asked.

Built-in parts are checked where they are written. One of the user's own is wrapped here, so that a mistake in it ends
in one sentence that names the part, the request and the remedy, instead of somewhere in the loss.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from limbeck.errors import ContractError, EngineError, LimbeckError, RecipeError, TeacherError
from limbeck.protocols import Engine, HoldsHeads, Policy, Teacher
from limbeck.records import (
    Failure,
    HiddenScores,
    ProbeResult,
    Sampled,
    SampleRequest,
    ScoreRequest,
    Scores,
    TokenScores,
    TopKScores,
)

T = TypeVar("T")

LIMBECK = str(Path(__file__).parents[1])
MOST = 0.05  # nats by which rounding may lift a log-prob above 0


class OwnTeacher:
    """A teacher whose every answer is checked against its request.

    Raises `TeacherError` where it raises or returns something else than one answer a request, and `ContractError` for
    an answer that cannot be trained on.
    """

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = checked_part(teacher, Teacher, "teacher")
        self.name, self.info = teacher.name, teacher.info
        self.heads: Mapping[str, Any] = teacher.heads if isinstance(teacher, HoldsHeads) else {}

    async def score(self, unit: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        who = f"teacher {self.name}"
        answers = await call(f"{who}: score", TeacherError, lambda: self.teacher.score(unit))
        _check_one_each(who, TeacherError, answers, len(unit))
        for request, answer in zip(unit, answers, strict=True):
            problem = None if isinstance(answer, Failure) else problem_of_scores(answer, request)
            if problem:
                result = ProbeResult("answers", problem, "what was asked for", ok=False)
                raise ContractError(f"{who}, request {request.id!r}: {problem}", [result])
        return answers


class OwnEngine:
    """An engine whose every response is checked against its request. `vocabulary` is what student and teacher share.

    Raises `EngineError` where it raises, answers something else than one response a request, or one that cannot be.
    """

    def __init__(self, engine: Engine, vocabulary: int) -> None:
        self.engine = checked_part(engine, Engine, "engine")
        if engine.max_rows is not None and engine.max_rows < 1:
            raise RecipeError(f"engine {_kind(engine)}: max_rows = {engine.max_rows}, expected None or at least 1")
        self.vocabulary = vocabulary
        self.name = f"engine {_kind(engine)}"
        self.max_rows = engine.max_rows

    async def load(self, policy: Policy) -> None:
        await call(f"{self.name}: load", EngineError, lambda: self.engine.load(policy))

    async def sample(self, unit: Sequence[SampleRequest]) -> list[Sampled | Failure]:
        answers = await call(f"{self.name}: sample", EngineError, lambda: self.engine.sample(unit))
        _check_one_each(self.name, EngineError, answers, len(unit))
        for request, answer in zip(unit, answers, strict=True):
            problem = None if isinstance(answer, Failure) else problem_of_response(answer, request, self.vocabulary)
            if problem:
                raise EngineError(f"{self.name}, prompt {request.key.prompt_id!r}: {problem}")
        return answers


async def call(what: str, kind: type[LimbeckError], part: Callable[[], Awaitable[T]]) -> T:
    """What `part` returns. What it raises is raised as `kind`, with `what` and its place; a `LimbeckError` as it is."""
    try:
        awaitable = part()
        if inspect.isawaitable(awaitable):
            return await awaitable
    except LimbeckError:
        raise
    except Exception as error:
        raise kind(f"{what} raised {type(error).__name__}: {error} ({place_of(error)})") from error
    raise kind(f"{what} returned {_kind(awaitable)}, expected an awaitable. Write it as `async def`.")


def place_of(error: BaseException) -> str:
    """The innermost line that is neither a package's nor Limbeck's: `my_parts.py, line 12, in score`."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and not f.filename.startswith(LIMBECK)]
    frame = (own or frames)[-1]
    return f"{frame.filename}, line {frame.lineno}, in {frame.name}"


def checked_part(part: T, protocol: type, seam: str) -> T:
    """The part itself. Raises `RecipeError` for a class in its place, and where a member of the protocol is missing."""
    if inspect.isclass(part):
        raise RecipeError(f"{seam}: {part.__name__} is a class, expected an object: give {part.__name__}(...)")
    names = [name for name in (*protocol.__annotations__, *vars(protocol)) if not name.startswith("_")]
    missing = [name for name in names if not hasattr(part, name)]
    if missing:
        raise RecipeError(
            f"{seam}: {_kind(part)} has no {', '.join(missing)}; expected everything of limbeck.protocols."
            f"{protocol.__name__}: {', '.join(names)}"
        )
    return part


def _check_one_each(who: str, kind: type[LimbeckError], answers: Any, asked: int) -> None:
    if not isinstance(answers, list | tuple):
        raise kind(f"{who} returned {_kind(answers)}, expected a list with one answer for each request")
    if len(answers) != asked:
        raise kind(f"{who} gave {len(answers)} answers to {asked} requests: it must give one each, in order")


def problem_of_scores(scores: Any, request: ScoreRequest) -> str | None:
    """Why the scores are not what the request asked for; None where they are."""
    count, support = len(request.scored_ids), request.support
    if not isinstance(scores, TokenScores | TopKScores | HiddenScores):
        return f"it answered {_kind(scores)}, expected TokenScores, TopKScores, HiddenScores or a Failure"
    if isinstance(scores, HiddenScores):
        shape = getattr(scores.states, "shape", None)
        if not hasattr(scores.states, "fetch") or shape is None or len(shape) != 2 or shape[0] != count:
            return (
                f"states are {_array(scores.states)} for {count} scored tokens; expected limbeck.protocols.States of "
                f"shape [{count}, d], such as limbeck.models.states.LocalStates(tensor)"
            )
        return None  # more than any support
    wanted: type = TopKScores
    if isinstance(support, str):
        wanted = TokenScores if support == "sampled" else HiddenScores
    if count and not isinstance(scores, wanted):
        have = "'sampled'" if isinstance(scores, TokenScores) else f"{scores.ids.shape[-1]}"
        return (
            f"it was asked for {_asked(support)} and answered {type(scores).__name__}, expected {wanted.__name__}. Set "
            f"objective.support = {have} for this teacher, or answer with {wanted.__name__}."
        )
    if scores.temperature != request.temperature:
        return (
            f"the scores are stamped temperature {scores.temperature}, but the student sampled at "
            f"{request.temperature}. Score at the temperature of the request."
        )
    return _problem_of_arrays(scores, request, count)


def _problem_of_arrays(scores: TokenScores | TopKScores, request: ScoreRequest, count: int) -> str | None:
    if not count:
        return None
    expected: dict[str, tuple[Any, str, tuple[int, ...]]] = {}
    if isinstance(scores, TopKScores):
        support = request.support
        k = support if isinstance(support, int) else np.asarray(support).shape[1]
        expected["ids"] = (scores.ids, "int64", (count, k))
        expected["logprobs"] = (scores.logprobs, "float32", (count, k))
        expected["logprobs_of_sampled"] = (scores.logprobs_of_sampled, "float32", (count,))
    else:
        expected["logprobs"] = (scores.logprobs, "float32", (count,))
    if scores.errors is not None:
        expected["errors"] = (scores.errors, "float32", (count,))
    if scores.valid_mask is not None:
        expected["valid_mask"] = (scores.valid_mask, "bool", (count,))
    for name, (array, dtype, shape) in expected.items():
        if problem := _problem_of_array(name, array, dtype, shape):
            return problem
    valid = np.ones(count, np.bool_) if scores.valid_mask is None else scores.valid_mask
    for name, (array, _, _) in expected.items():
        wrong = array[valid & ~(array <= MOST).reshape(count, -1).all(axis=1)]
        if name.startswith("logprobs") and len(wrong):
            return f"{name} has {wrong.max():.4g}, but a log-prob is at most 0. Normalise over the vocabulary."
    if isinstance(scores, TopKScores) and (np.diff(np.sort(scores.ids, axis=1), axis=1) == 0).any():
        return "ids name one token twice at one position, which would count twice. Return K different tokens."
    return None


def problem_of_response(sampled: Any, request: SampleRequest, vocabulary: int) -> str | None:
    """Why a response cannot be one to the request; None where it can."""
    if not isinstance(sampled, Sampled):
        return f"it answered {_kind(sampled)}, expected Sampled or a Failure"
    ids, sampling = sampled.token_ids, request.sampling
    count = len(ids) if isinstance(ids, np.ndarray) and ids.ndim == 1 else 0
    arrays: list[tuple[str, Any, str, tuple[int, ...]]] = [
        ("token_ids", ids, "int64", (count,)),
        ("logprobs", sampled.logprobs, "float32", (count,)),
    ]
    if request.top:
        arrays.append(("top_ids", sampled.top_ids, "int64", (count, request.top)))
    for name, array, dtype, shape in arrays:
        if problem := _problem_of_array(name, array, dtype, shape):
            return problem
    if not 0 < count <= sampling.max_tokens:
        return (
            f"the response has {count} tokens, expected 1 to rollout.max_tokens = {sampling.max_tokens}; a stop token "
            "belongs to the response"
        )
    outside = ids[(ids < 0) | (ids >= vocabulary)]
    if len(outside):
        return f"it sampled token {outside[0]}, but student and teacher share ids 0 to {vocabulary - 1} only"
    wrong = sampled.logprobs[~(sampled.logprobs <= MOST) | np.isneginf(sampled.logprobs)]
    if len(wrong):
        return f"a sampled token has the log-prob {wrong[0]}, expected a finite number of at most 0"
    return _problem_of_end(sampled, sampling.stop_ids, sampling.max_tokens)


def _problem_of_end(sampled: Sampled, stop_ids: Sequence[int], max_tokens: int) -> str | None:
    ids = sampled.token_ids
    stops = np.flatnonzero(np.isin(ids, stop_ids))
    if len(stops) and stops[0] < len(ids) - 1:
        return (
            f"it went on after the stop token {ids[stops[0]]}, token {stops[0]} of {len(ids)}. End with the first one."
        )
    if not len(stops) and len(ids) < max_tokens:
        return (
            f"the response ends after {len(ids)} of {max_tokens} tokens without a stop token {tuple(stop_ids)}. Keep "
            "the stop token in the response, or add it to rollout.stop_ids."
        )
    finish = "stop" if len(stops) else "length"
    if sampled.finish != finish:
        return f"finish = {sampled.finish!r}, but the last token makes it {finish!r}"
    return None


def _problem_of_array(name: str, array: Any, dtype: str, shape: tuple[int, ...]) -> str | None:
    if isinstance(array, np.ndarray) and array.dtype == dtype and array.shape == shape:
        return None
    remedy = " Compute in float32, and convert with .astype(np.float32)." if dtype == "float32" else ""
    return f"{name} is {_array(array)}, expected a numpy array of {dtype} with shape {list(shape)}.{remedy}"


def _array(array: Any) -> str:
    if hasattr(array, "shape"):
        return f"{_kind(array)} of {getattr(array, 'dtype', 'unknown type')} with shape {list(array.shape)}"
    return _kind(array)


def _asked(support: Any) -> str:
    if isinstance(support, str):
        return "the whole distribution (support 'full')" if support == "full" else "the sampled tokens' log-probs"
    return f"{support} tokens a position" if isinstance(support, int) else "the log-probs of given ids"


def _kind(thing: Any) -> str:
    return "None" if thing is None else type(thing).__name__
