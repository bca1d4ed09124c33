"""Each protection, switched off: the suite must notice. The product has no such switches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import limbeck.files.digests as digests
import limbeck.wire.binding as binding


def _one_nonce() -> str:
    return "0" * 32


def _any_request(key: bytes, method: str, route: str, body: bytes, headers: Mapping[str, str]) -> str:
    return headers.get(binding.REQUEST) or ""


def _any_answer(key: bytes, request: str, status: int, body: bytes, headers: Mapping[str, str]) -> Any:
    at = headers.get(binding.TEMPERATURE)
    return binding.Stamp(headers.get(binding.WEIGHTS, ""), float(at) if at else None)


def _any_weights(known: binding.Known, stamp: binding.Stamp | None) -> None:
    known.binds = known.binds or stamp is not None


def _any_files(*_: Any) -> None: ...


SUBSTITUTES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "nonce": (binding.new_nonce, _one_nonce),
    "request digest": (binding.verified_request, _any_request),
    "answer digest": (binding.verified_answer, _any_answer),
    "fingerprint": (binding.Known.check_stamp, _any_weights),
    "file digest": (digests._compare, _any_files),
}


def switch_off(name: str) -> list[Any]:
    """Wherever in this process the protection's function is known; the places and names of that."""
    original, substitute = SUBSTITUTES[name]
    places = [module for key, module in sys.modules.items() if key.startswith("limbeck")]
    found = [
        (place, key) for place in (*places, binding.Known) for key, value in vars(place).items() if value is original
    ]
    assert found, f"nothing of the {name} is there to be switched off"
    for place, key in found:
        setattr(place, key, substitute)
    return found


@contextmanager
def without(name: str) -> Iterator[None]:
    found = switch_off(name)
    try:
        yield
    finally:
        for place, key in found:
            setattr(place, key, SUBSTITUTES[name][0])
