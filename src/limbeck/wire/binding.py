"""Ties an answer to its question, and both to the weights that answered.

    request    Limbeck-Nonce        32 hex digits, new for every try
               Limbeck-Request      digest of method, route, nonce and body
    answer     Limbeck-Weights      fingerprint of the weights that answered
               Limbeck-Temperature  what the logits were divided by; empty where nothing was
               Limbeck-Answer       digest of the request's digest, status, weights, temperature and body

They travel in headers, so that any schema can carry them. A digest is SHA-256, keyed (HMAC) with the bearer token
where there is one: then nobody without the token can make one. Without a token it finds faults, not forgers.

`limbeck serve` refuses a request that does not fit its digest, with `Limbeck-Problem: request`, and it is sent again. A
client that sends no digest gets a plain answer. What stock servers repeat, and must go on repeating, is in `Known`.

    what went wrong on the way                       found by
    a bit of the request, its method or its route    the server: the request's digest
    a bit of the answer                              the client: the answer's digest
    answers exchanged, delivered twice or replayed   the client: the nonce, by way of the request's digest
    another model behind the address                 the client: the weights
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from limbeck.wire.score import WireError

NONCE, REQUEST = "limbeck-nonce", "limbeck-request"
WEIGHTS, TEMPERATURE, ANSWER = "limbeck-weights", "limbeck-temperature", "limbeck-answer"
PROBLEM = "limbeck-problem"  # of an error: "request" where the request did not fit its digest


def new_nonce() -> str:
    return secrets.token_hex(16)


def request_headers(key: bytes, method: str, route: str, body: bytes, nonce: str) -> dict[str, str]:
    """What a client sends with `body`. `key` is the bearer token, empty where there is none."""
    return {NONCE: nonce, REQUEST: _digest(key, "request", method, route, nonce, body)}


def verified_request(key: bytes, method: str, route: str, body: bytes, headers: Mapping[str, str]) -> str:
    """The digest of a request that fits it; empty where the client sent none. Raises `WireError` (kind unbound)."""
    given, nonce = headers.get(REQUEST), headers.get(NONCE)
    if given is None and nonce is None:
        return ""
    expected = _digest(key, "request", method, route, nonce or "", body)
    if not nonce or not given or not _equal(given, expected):
        raise WireError("unbound", "the request does not fit its digest: it was damaged on the way. Send it again")
    return expected


def answer_headers(
    key: bytes, request: str, status: int, weights: str, temperature: float | None, body: bytes
) -> dict[str, str]:
    """What a server sends with `body`. `request` is the digest of a verified request."""
    at = "" if temperature is None else repr(float(temperature))
    return {WEIGHTS: weights, TEMPERATURE: at, ANSWER: _digest(key, "answer", request, str(status), weights, at, body)}


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a server that binds its answers says of one."""

    weights: str
    temperature: float | None


def verified_answer(key: bytes, request: str, status: int, body: bytes, headers: Mapping[str, str]) -> Stamp | None:
    """The stamp of an answer that belongs to `request`; None where it carries none.

    Raises `WireError` (kind unbound) for one that was damaged, or belongs to another request.
    """
    given = headers.get(ANSWER)
    if given is None:
        return None
    weights, at = headers.get(WEIGHTS, ""), headers.get(TEMPERATURE, "")
    if not weights or not _equal(given, _digest(key, "answer", request, str(status), weights, at, body)):
        raise WireError(
            "unbound", "the answer does not fit its digest: it was damaged on the way, or belongs to another request"
        )
    try:
        return Stamp(weights, float(at) if at else None)
    except ValueError:
        raise WireError("malformed", f"the header {TEMPERATURE} is {at!r}, expected a number") from None


@dataclass(slots=True)
class Known:
    """What the server at one address has shown so far, and must go on showing."""

    binds: bool = False  # its answers carry digests
    weights: str | None = None  # their fingerprint
    model: str | None = None  # the name in its answers
    echoes: set[str] = field(default_factory=set)  # what it repeats of a request: "request id", "prompt ids"

    def check_stamp(self, stamp: Stamp | None) -> None:
        """Raises `WireError` where a server that binds its answers stopped doing so, or has other weights now."""
        if stamp is None:
            if self.binds:
                raise WireError(
                    "unbound",
                    "the answer carries no digest, as every answer of `limbeck serve` does: something on the way takes "
                    "its headers (Limbeck-*) out, it is of an older version, or another server answers: look at the "
                    "address and at the kind of server",
                )
            return
        self.binds = True
        if self.weights is None:
            self.weights = stamp.weights
        elif stamp.weights != self.weights:
            raise WireError(
                "other_model", f"the answer is of the weights {stamp.weights}, expected {self.weights} as before"
            )


class Echo:
    """What one answer of a JSON schema is compared with: its own request, and what the server showed before.

    Servers differ in what they repeat. Whatever is there is compared; what a server has repeated once, it must always.
    """

    def __init__(self, nonce: str = "", known: Known | None = None, stamp: Stamp | None = None) -> None:
        self.nonce, self.known, self.stamp = nonce, known or Known(), stamp
        self.asked_model: str | None = None

    def expecting(self, model: str | None) -> Echo:
        """The same, of a request that named this model."""
        self.asked_model = model
        return self

    def temperature(self, reported: Any) -> None:
        """`reported` is the scoring temperature in the body. Raises `WireError` where the server stamped another."""
        if self.stamp is not None and self.stamp.temperature is not None and reported != self.stamp.temperature:
            raise WireError(
                "temperature", f"the answer says temperature {reported!r}, its header {self.stamp.temperature}"
            )

    def request_id(self, found: Any) -> None:
        """`found` is the answer's name for the request, which was asked to be the nonce. Raises `WireError`.

        A gateway may put names of its own in their place: then it never repeats one, and nothing is concluded.
        """
        if self.nonce and isinstance(found, str) and found.endswith(self.nonce):  # vLLM puts "cmpl-" in front
            self.known.echoes.add("request id")
        elif "request id" in self.known.echoes:
            raise WireError("unbound", f"the answer is to the request {found!r}, expected {self.nonce!r}")

    def prompt_ids(self, found: Any, sent: Sequence[int]) -> None:
        """`found` are all tokens of the request, as the server had them. Raises `WireError`."""
        if found is None:
            if "prompt ids" in self.known.echoes:
                raise WireError("unbound", "the answer does not repeat the prompt's ids, as this server did before")
            return
        if found != list(sent):
            raise WireError("unbound", "the server had other tokens than were sent: the request was damaged on the way")
        self.known.echoes.add("prompt ids")

    def model(self, found: Any) -> None:
        """`found` is the name of the model that answered.

        Raises `WireError` for another than was asked for, or where none was, than before.
        """
        if not isinstance(found, str):
            if self.known.model is not None:
                raise WireError("unbound", "the answer does not name its model, as this server's did before")
            return
        expected = self.asked_model or self.known.model or found
        if found != expected:
            raise WireError("other_model", f"the answer is of the model {found!r}, expected {expected!r}")
        self.known.model = found


def _digest(key: bytes, *parts: str | bytes) -> str:
    """Every part with its length in front: no two lists of parts are one text."""
    digest = hmac.new(key, digestmod=hashlib.sha256)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


def _equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())
