"""A question to a scoring server, and the validated reply. Every dialect parses into `make_reply`.

    Question(ids, start=6, temperature=0.7, top_k=20)  ->  Reply(logprobs[n], top_ids[n, 20], ...)

Worked example: the sequence "12+34=" + "46" + end has nine tokens and `start` 6; the reply has the
log-probs of the last three. `temperature` None asks a server as it is (stock servers: temperature 1);
a number asks for a scoring temperature, which the server must acknowledge.

    WireError kinds            retried    meaning
    unreachable, timeout       yes        no connection, no answer in time, cut off
    busy                       yes        429, 503
    server                     yes        another 5xx
    refused                    once       4xx: the request itself is wrong (or the bearer token)
    unacknowledged             once       no word of the scoring temperature that was asked for
    unfit                      no         a sampled response that is whole, and not what was asked for
    malformed, short           yes        not the schema; fewer entries than positions; a wrong digest
    not_finite, clamped        yes        NaN or infinity; a floor such as -9999 in place of minus infinity
    inconsistent               yes        top tokens contradict the sampled one, or are not log-probs
    wrong_ids                  yes        the echoed token ids are not those that were sent
    temperature                yes        a scoring temperature that is not the one asked for

Shape legend: n scored positions (from `start` to the end), K top tokens, d hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from limbeck.records import Floats, Ints

Kind: TypeAlias = Literal[
    "unreachable", "timeout", "busy", "server", "refused", "malformed", "short", "not_finite", "clamped",
    "inconsistent", "wrong_ids", "temperature", "unacknowledged", "unfit",
]  # fmt: skip
FINAL = ("unfit",)  # asking until something else comes would change what is sampled from
REFUSALS = ("refused", "unacknowledged")  # the same again, unless one damaged byte made a refusal of an answer
AWAY = ("unreachable", "timeout", "busy", "server")  # worth waiting for; anything else is worth a few tries

CLAMP = -9000.0  # vLLM writes -9999 for minus infinity; no float32 log-softmax comes near
ABOVE_ZERO = 1e-4  # nats: a rounded log-prob of a certain token
AGREEMENT = 1e-3  # nats: one token's log-prob in two places of one answer
COARSE = 1024  # multiples of one part in so many are short in decimal too, and say nothing of how a number was printed


class WireError(Exception):
    """A server's answer could not be had or used. `kind` says why, `retry_after` when to ask again."""

    def __init__(self, kind: Kind, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.kind, self.retry_after = kind, retry_after

    @property
    def final(self) -> bool:
        return self.kind in FINAL


@dataclass(frozen=True, slots=True)
class Question:
    """What to score."""

    token_ids: Ints  # [L]
    start: int  # first scored position, at least 1
    temperature: float | None = None  # None: as the server is
    top_k: int = 0
    hidden: bool = False
    listed: tuple[int, ...] = ()  # tokens wanted at every position, whatever their rank; `limbeck serve` alone
    expected_temperature: float = 1.0  # of an answer that names its temperature without being asked

    @property
    def scored_ids(self) -> Ints:
        """[n] the tokens to score."""
        return self.token_ids[self.start :]


@dataclass(frozen=True, slots=True)
class Reply:
    """A validated answer. Top tokens are sorted, the most likely first."""

    logprobs: Floats  # [n]
    top_ids: Ints | None = None  # [n, K]
    top_logprobs: Floats | None = None  # [n, K]
    hidden: Floats | None = None  # [n, d]
    temperature: float | None = None  # as acknowledged; None: the server does not say


def make_reply(
    question: Question,
    ids: Sequence[Any],
    logprobs: Sequence[Any],
    tops: Sequence[Sequence[tuple[Any, Any]]] | None = None,
    temperature: Any = None,
) -> Reply:
    """Validate what a dialect took out of an answer: `ids` and `logprobs` [n], `tops` [n][K] of (id, log-prob).

    Raises `WireError`.
    """
    count = len(question.scored_ids)
    for what, values in (("token ids", ids), ("log-probs", logprobs), ("lists of top tokens", tops)):
        if values is not None and len(values) != count:
            raise WireError("short", f"the answer has {len(values)} {what} for {count} positions")
    check_ids(question, [integer(value, "token id") for value in ids])
    logprobs_n = check_logprobs(np.array([number(value, "log-prob") for value in logprobs], dtype=np.float64))
    acknowledged = check_temperature(question, temperature)
    if not question.top_k:
        check_digits(logprobs_n)
        return Reply(logprobs_n.astype(np.float32), temperature=acknowledged)
    if tops is None:
        raise WireError("short", f"the answer has no top tokens, {question.top_k} a position were asked for")
    top_ids, top_logprobs = _rectangle(tops, question.top_k)
    check_digits(np.append(logprobs_n, top_logprobs))
    return top_reply(question, logprobs_n, top_ids, top_logprobs, acknowledged)


def top_reply(
    question: Question, logprobs_n: npt.NDArray[Any], top_ids: Ints, top_logprobs: npt.NDArray[Any],
    temperature: float | None,
) -> Reply:  # fmt: skip
    """A reply with sorted top tokens that do not contradict the sampled one. Raises `WireError`."""
    check_logprobs(top_logprobs)
    order = np.argsort(-top_logprobs, axis=1, kind="stable")
    top_ids = np.take_along_axis(top_ids, order, axis=1)
    top_logprobs = np.take_along_axis(top_logprobs, order, axis=1)
    _check_tops(question, logprobs_n, top_ids, top_logprobs)
    return Reply(logprobs_n.astype(np.float32), top_ids, top_logprobs.astype(np.float32), temperature=temperature)


def check_ids(question: Question, ids: Sequence[int]) -> None:
    """The echoed ids must be those that were sent. Raises `WireError`."""
    sent = question.scored_ids.tolist()
    for position, (ours, theirs) in enumerate(zip(sent, ids, strict=True)):
        if ours != theirs:
            raise WireError(
                "wrong_ids",
                f"at response position {position} the server scored token {theirs}, but {ours} was sent: it holds "
                "another tokenizer, re-tokenised the text, or shifted the answer",
            )


def check_logprobs(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Finite, at most 0 and no clamp. Raises `WireError`."""
    if not np.isfinite(values).all():
        raise WireError("not_finite", f"the answer has a log-prob of {values[~np.isfinite(values)].flat[0]}")
    if (values <= CLAMP).any():
        raise WireError(
            "clamped",
            f"the answer has a log-prob of {values.min():g}, which stands for a probability of 0: the server cuts its "
            "distribution (top-p, top-k, a grammar) or its logits are not finite. Score with an unprocessed one",
        )
    if (values > ABOVE_ZERO).any():
        raise WireError("inconsistent", f"the answer has a log-prob of {values.max():g}, above 0")
    capped: npt.NDArray[Any] = np.minimum(values, 0.0)
    return capped


def check_digits(values: npt.NDArray[Any]) -> None:
    """The one checksum that JSON has: a float32 printed in full is a float32 again when it is read.

    A changed digit leaves a number between two float32, except some in the places of tenths and above. Where
    most numbers of an answer are float32 and one is not, that one was damaged; where they are not, the server
    rounds what it prints, and nothing can be said. Raises `WireError`.
    """
    with np.errstate(over="ignore"):  # too large for a float32 is none
        single = values.astype(np.float32) == values
    telling = single & (values * COARSE != np.floor(values * COARSE))
    if not single.all() and telling.sum() > (~single).sum():
        raise WireError(
            "malformed", f"the answer has a number {values[~single].flat[0]!r} with other digits than a float32 has, "
            "as the rest of it has: it was damaged on the way"
        )  # fmt: skip


def check_temperature(question: Question, told: Any) -> float | None:
    """The acknowledged temperature must be the one asked for. Raises `WireError`."""
    if told is None:
        if question.temperature is not None:
            raise WireError(
                "unacknowledged",
                f"the server did not acknowledge the scoring temperature {question.temperature}: like every stock "
                "server it does not know the field, and answered at temperature 1",
            )
        return None
    given = number(told, "temperature")
    wanted = question.expected_temperature if question.temperature is None else question.temperature
    if given != wanted:
        raise WireError("temperature", f"the server scored at temperature {given}, expected {wanted}")
    return given


def _rectangle(tops: Sequence[Sequence[tuple[Any, Any]]], k: int) -> tuple[Ints, npt.NDArray[np.float64]]:
    """[n, K] ids and log-probs; more than K at a position are cut after sorting by the caller's dialect."""
    for position, row in enumerate(tops):
        if len(row) != k:
            raise WireError("short", f"response position {position} has {len(row)} top tokens, {k} were asked for")
    ids = np.array([[integer(i, "top token id") for i, _ in row] for row in tops], dtype=np.int64)
    values = np.array([[number(x, "top log-prob") for _, x in row] for row in tops], dtype=np.float64)
    return ids.reshape(len(tops), k), values.reshape(len(tops), k)


def _check_tops(
    question: Question, logprobs_n: npt.NDArray[Any], top_ids: Ints, top_logprobs: npt.NDArray[Any]
) -> None:
    """Distinct ids; the sampled token has one log-prob, and is not above the last one when it is not among them."""
    distinct = np.sort(top_ids, axis=1)
    if (distinct[:, 1:] == distinct[:, :-1]).any() or (top_ids < 0).any():
        raise WireError(
            "inconsistent", "a token occurs twice, or has a negative id, among the top tokens of a position"
        )
    if len(top_ids) and (np.exp(top_logprobs.astype(np.float64)).sum(axis=1) > 1 + AGREEMENT).any():
        raise WireError("inconsistent", "the top tokens of a position have probabilities that sum to more than 1")
    found = top_ids == question.scored_ids[:, None]
    apart = np.abs(np.where(found, top_logprobs, logprobs_n[:, None]) - logprobs_n[:, None])
    if (apart > AGREEMENT).any():
        raise WireError(
            "inconsistent", f"one token has two log-probs, {apart.max():.3g} nats apart, as sampled and as top token"
        )
    outside = ~found.any(axis=1) & (logprobs_n > top_logprobs.min(axis=1, initial=0.0) + AGREEMENT)
    if top_ids.shape[1] and outside.any():
        raise WireError("inconsistent", "a sampled token is more likely than the least of the top tokens, but not one")


def member(value: Any, key: str, of: str = "the answer") -> Any:
    """`value[key]` of a JSON object. Raises `WireError` where it is not one or has no such member."""
    if not isinstance(value, Mapping) or key not in value:
        raise WireError("malformed", f"{of} has no {key!r}")
    return value[key]


def sequence(value: Any, what: str) -> Sequence[Any]:
    """A JSON array. Raises `WireError` otherwise."""
    if not isinstance(value, list | tuple):
        raise WireError("malformed", f"{what} is a {type(value).__name__}, expected a list")
    return value


def number(value: Any, what: str) -> float:
    """A JSON number. Raises `WireError` for None, booleans and text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WireError("malformed", f"a {what} is {value!r}, expected a number")
    return float(value)


def integer(value: Any, what: str) -> int:
    """A JSON integer. Raises `WireError` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise WireError("malformed", f"a {what} is {value!r}, expected an integer")
    return value
