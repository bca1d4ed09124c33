"""What scoring servers are asked, and the validated reply. Every dialect parses into `make_reply`.

    request_of(ids, start=6, temperature=0.7, support=20)  ->  Reply(logprobs[S], top_ids[S, 20], ...)

Worked example: the sequence "12+34=" + "46" + end has nine tokens, of which the last three are scored, and the
reply has their three log-probs. A server answers from the first scored token to the end; where the mask has
holes, what is in them is checked like the rest and dropped.

A server that is known to take a scoring temperature (`acknowledges`) is sent it and must name it in its answer.
Any other server is sent none, and answers at its own: stock servers at temperature 1.

    WireError kinds            retried    meaning
    unreachable, timeout       yes        no connection, no answer in time, cut off
    busy                       yes        429, 503
    server                     yes        another 5xx
    refused                    once       4xx: the request itself is wrong (or the bearer token)
    unacknowledged             once       a scoring temperature was sent and is not in the answer
    unsupported                no         this kind of server cannot answer such a request; nothing was sent
    unfit                      no         a sampled response that is complete, and not what was asked for
    malformed, short           yes        not the schema; fewer entries than positions; a wrong digest
    not_finite, clamped        yes        NaN or infinity; a floor such as -9999 in place of minus infinity
    inconsistent               yes        top tokens contradict the sampled one, or each other
    unnormalised               yes        log-probs above 0, or top tokens whose probabilities sum to more than 1
    wrong_ids                  yes        the echoed token ids are not those that were sent
    temperature                yes        a scoring temperature that is not the one asked for
    unbound                    yes        the answer belongs to another request, or one of the two was damaged
    other_model                yes        the answer is of other weights than those that were proven

Shape legend: L sequence, n tokens from the first scored one to the end, S scored tokens, K tokens a position,
d hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from limbeck.records import Floats, Ints, Mask, ScoreRequest
from limbeck.sanitize import printable

Kind: TypeAlias = Literal[
    "unreachable", "timeout", "busy", "server", "refused", "malformed", "short", "not_finite", "clamped",
    "inconsistent", "unnormalised", "wrong_ids", "temperature", "unacknowledged", "unsupported", "unfit",
    "unbound", "other_model",
]  # fmt: skip
FINAL = ("unfit", "unsupported")  # asking until something else comes would change what is sampled from
REFUSALS = ("refused", "unacknowledged")  # tried once more: a server that is starting may refuse what it later takes
AWAY = ("unreachable", "timeout", "busy", "server")  # worth waiting for; anything else is worth a few tries

LONGEST_MESSAGE, LONGEST_NAME = 1000, 1000  # characters
CLAMP = -9000.0  # vLLM writes -9999 for minus infinity; no float32 log-softmax comes near
ABOVE_ZERO = 1e-4  # nats: a rounded log-prob of a certain token
AGREEMENT = 1e-3  # nats: one token's log-prob in two places of one answer
ONE_LIST = (
    "Stock servers answer with their own top tokens, or about one list for all positions: serve the teacher with "
    "`limbeck serve` (teacher.kind = 'limbeck'), or ask for its own top K (objective.support = K)"
)


class WireError(Exception):
    """A server gave no answer, or none that can be used. `kind` says why, `retry_after` when to ask again.

    Here a server's text becomes a message: what a terminal would obey is made visible, and it is kept short.
    """

    def __init__(self, kind: Kind, message: str, retry_after: float | None = None) -> None:
        super().__init__(safe_text(message, LONGEST_MESSAGE))
        self.kind, self.retry_after = kind, retry_after

    @property
    def final(self) -> bool:
        return self.kind in FINAL


@dataclass(frozen=True, slots=True)
class Reply:
    """A validated answer. A server's own top tokens are sorted, the most likely first; given ids stay as given."""

    logprobs: Floats  # [S]; empty where only hidden states were sent
    top_ids: Ints | None = None  # [S, K]
    top_logprobs: Floats | None = None  # [S, K]
    hidden: Floats | None = None  # [S, d]
    temperature: float | None = None  # as the server reported it; None: it reported none
    errors: Floats | None = None  # [S] nats, of states that were rounded for the wire: see `binary`
    prefix_errors: Floats | None = None  # [S] nats: the same without the scored token, so a function of the prefix


def top_k(request: ScoreRequest) -> int:
    """How many of its own most likely tokens a server is asked for."""
    return request.support if isinstance(request.support, int) else 0


def given_ids(request: ScoreRequest) -> Ints | None:
    """[n, K] the ids that are asked about at each position; None where none are given.

    Where the mask has holes, those of the first position are asked about: what comes back is dropped.
    """
    support = request.support
    if not isinstance(support, np.ndarray):
        return None
    ids_nK = np.repeat(support[:1], len(asked_ids(request)), axis=0)
    ids_nK[kept(request)] = support
    return ids_nK


def given_to_all(request: ScoreRequest) -> list[int]:
    """The one list of ids that is asked about at every position; empty where none is given.

    Raises `WireError` where positions have different lists: stock servers take one list a sequence.
    """
    given = given_ids(request)
    if given is None or not len(given):
        return []
    if (given != given[0]).any():
        raise WireError("unsupported", f"request {request.id!r} gives other ids at each position. {ONE_LIST}")
    return list(given[0].tolist())


def support_size(request: ScoreRequest) -> int:
    """K, the tokens beside the sampled one that a server is asked about at each position, given or its own top."""
    support = request.support
    return support.shape[1] if isinstance(support, np.ndarray) else top_k(request)


def wants_states(request: ScoreRequest) -> bool:
    """Whether the answer is final hidden states: with its head, they are the distribution over all tokens."""
    return isinstance(request.support, str) and request.support == "full"


def refuse_states(request: ScoreRequest, server: str) -> None:
    """Raises `WireError` for a server that sends no hidden states."""
    if wants_states(request):
        raise WireError(
            "unsupported",
            f"request {request.id!r} asks for the whole vocabulary, but {server} sends no hidden states. Use a top K "
            "(objective.support = K), or `limbeck serve` with teacher.head",
        )


def asked_ids(request: ScoreRequest) -> Ints:
    """[n] the tokens that a server answers about."""
    return request.token_ids[request.start :]


def kept(request: ScoreRequest) -> Mask:
    """[n] which of them were asked for."""
    return request.scored[request.start :]


def make_reply(
    request: ScoreRequest,
    ids: Sequence[Any],
    logprobs: Sequence[Any],
    tops: Sequence[Sequence[tuple[Any, Any]]] | None = None,
    temperature: Any = None,
    *,
    acknowledges: bool = False,
) -> Reply:
    """Validate what a dialect took out of an answer: `ids` and `logprobs` [n], `tops` [n][K] of (id, log-prob).

    `tops` are the given ids where the request gives them. Raises `WireError`.
    """
    count = len(asked_ids(request))
    for what, values in (("token ids", ids), ("log-probs", logprobs), ("lists of top tokens", tops)):
        if values is not None and len(values) != count:
            raise WireError("short", f"the answer has {len(values)} {what} for {count} positions")
    check_ids(request, [integer(value, "token id") for value in ids])
    logprobs_n = check_logprobs(np.array([number(value, "log-prob") for value in logprobs], dtype=np.float64))
    reported = check_temperature(request, temperature, acknowledges)
    k = support_size(request)
    if not k:
        return Reply(logprobs_n.astype(np.float32)[kept(request)], temperature=reported)
    if tops is None:
        raise WireError("short", f"the answer has no top tokens, {k} a position were asked for")
    top_ids, top_logprobs = _rectangle(tops, k)
    return top_reply(request, logprobs_n, top_ids, top_logprobs, reported)


def top_reply(
    request: ScoreRequest, logprobs_n: npt.NDArray[Any], top_ids: Ints, top_logprobs: npt.NDArray[Any],
    temperature: float | None,
) -> Reply:  # fmt: skip
    """A reply whose top tokens, sorted, do not contradict the sampled one. Raises `WireError`."""
    check_logprobs(top_logprobs)
    given = given_ids(request)
    if given is not None:
        wrong = given[(top_ids != given).any(axis=1)]
        if len(wrong):
            first = wrong[0, :12].tolist()
            raise WireError("wrong_ids", f"the answer has log-probs of other tokens than {first}, which were given")
        _check_sampled(request, logprobs_n, top_ids, top_logprobs)
        _check_mass(top_ids, top_logprobs)
    else:
        order = np.argsort(-top_logprobs, axis=1, kind="stable")
        top_ids = np.take_along_axis(top_ids, order, axis=1)
        top_logprobs = np.take_along_axis(top_logprobs, order, axis=1)
        _check_tops(request, logprobs_n, top_ids, top_logprobs)
    keep = kept(request)
    return Reply(
        logprobs_n.astype(np.float32)[keep],
        top_ids[keep],
        top_logprobs.astype(np.float32)[keep],
        temperature=temperature,
    )


def check_ids(request: ScoreRequest, ids: Sequence[int]) -> None:
    """The echoed ids must be those that were sent. Raises `WireError`."""
    sent = asked_ids(request).tolist()
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
            f"the answer has a log-prob of {values.min():g}, which means a probability of 0: the server cuts its "
            "distribution (top-p, top-k, a grammar) or its logits are not finite. Score with an unprocessed one",
        )
    if (values > ABOVE_ZERO).any():
        raise WireError("unnormalised", f"the answer has a log-prob of {values.max():g}, above 0")
    capped: npt.NDArray[Any] = np.minimum(values, 0.0)
    return capped


def check_temperature(request: ScoreRequest, reported: Any, acknowledges: bool) -> float | None:
    """What the server reported, which must be what was asked for. Raises `WireError`."""
    if reported is None:
        if acknowledges:
            raise WireError(
                "unacknowledged",
                f"the server did not acknowledge the scoring temperature {request.temperature}: like every stock "
                "server it does not know the field, and answered at temperature 1",
            )
        return None
    given = number(reported, "temperature")
    if given != request.temperature:
        raise WireError("temperature", f"the server scored at temperature {given}, expected {request.temperature}")
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
    request: ScoreRequest, logprobs_n: npt.NDArray[Any], top_ids: Ints, top_logprobs: npt.NDArray[Any]
) -> None:
    """Distinct ids; the sampled token is not above the last of them when it is not among them."""
    if _twice(top_ids).any() or (top_ids < 0).any():
        raise WireError(
            "inconsistent", "a token occurs twice, or has a negative id, among the top tokens of a position"
        )
    _check_mass(top_ids, top_logprobs)
    found = _check_sampled(request, logprobs_n, top_ids, top_logprobs)
    outside = ~found.any(axis=1) & (logprobs_n > top_logprobs.min(axis=1, initial=0.0) + AGREEMENT)
    if top_ids.shape[1] and outside.any():
        raise WireError("inconsistent", "a sampled token is more likely than the least of the top tokens, but not one")


def _check_mass(ids: Ints, logprobs: npt.NDArray[Any]) -> None:
    """The probabilities of different tokens sum to at most 1."""
    mass_n = np.exp(logprobs.astype(np.float64)).sum(axis=1)
    if ((mass_n > 1 + AGREEMENT) & ~_twice(ids)).any():
        raise WireError("unnormalised", "the tokens of a position have probabilities that sum to more than 1")


def _twice(ids: Ints) -> Mask:
    """[n] where a token is named twice."""
    ordered = np.sort(ids, axis=1)
    twice: Mask = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    return twice


def _check_sampled(
    request: ScoreRequest, logprobs_n: npt.NDArray[Any], top_ids: Ints, top_logprobs: npt.NDArray[Any]
) -> Mask:
    """[n, K] where the sampled token is among the others: there it has one log-prob."""
    found: Mask = top_ids == asked_ids(request)[:, None]
    difference = np.abs(np.where(found, top_logprobs, logprobs_n[:, None]) - logprobs_n[:, None])
    if (difference > AGREEMENT).any():
        raise WireError(
            "inconsistent",
            f"one token has two log-probs, {difference.max():.3g} nats apart, as sampled and as top token",
        )
    return found


def safe_text(text: Any, longest: int = LONGEST_NAME) -> str:
    """Text of a server, safe to print and cut where it is too long."""
    safe = printable(str(text)).replace("\n", "\u240a").replace("\t", "\u2409")  # nor may it begin a line of its own
    return safe if len(safe) <= longest else f"{safe[:longest]}... ({len(safe)} characters)"


def member(value: Any, key: str, of: str = "the answer") -> Any:
    """`value[key]` of a JSON object. Raises `WireError` where it is not one or has no such member."""
    if not isinstance(value, Mapping) or key not in value:
        raise WireError("malformed", f"{of} has no {key!r}")
    return value[key]


def optional(value: Any, key: str, of: str = "the answer") -> Any:
    """`value[key]` of a JSON object, or None. Raises `WireError` where it is not one."""
    if not isinstance(value, Mapping):
        raise WireError("malformed", f"{of} is a {type(value).__name__}, expected an object")
    return value.get(key)


def sequence(value: Any, what: str) -> Sequence[Any]:
    """A JSON array. Raises `WireError` otherwise."""
    if not isinstance(value, list | tuple):
        raise WireError("malformed", f"{what} is a {type(value).__name__}, expected a list")
    return value


def number(value: Any, what: str) -> float:
    """A JSON number. Raises `WireError` for None, booleans, text, and what no float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WireError("malformed", f"a {what} is {value!r}, expected a number")
    try:
        return float(value)
    except OverflowError:
        raise WireError("malformed", f"a {what} is an integer of more digits than any number has here") from None


def integer(value: Any, what: str) -> int:
    """A JSON integer of at most 63 bits. Raises `WireError` otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise WireError("malformed", f"a {what} is {value!r}, expected an integer")
    if value.bit_length() > 63:
        raise WireError("malformed", f"a {what} is an integer of {value.bit_length()} bits, expected at most 63")
    return value
