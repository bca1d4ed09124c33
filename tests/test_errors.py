from __future__ import annotations

import pickle

import pytest

from limbeck import errors
from limbeck.errors import ContractError, LimbeckError, NonFiniteError


def _tree(kind: type[LimbeckError]) -> list[type[LimbeckError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _tree(child))]


KINDS = [kind for kind in _tree(LimbeckError) if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_arrives_from_another_process_as_it_was_raised(kind: type[LimbeckError]) -> None:
    more = {ContractError: {"results": ("a",)}, NonFiniteError: {"samples": ["b"]}}.get(kind, {})
    error = kind("what is wrong", **more)
    error.add_note("and where")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), vars(again)) == ("what is wrong", {**more, "__notes__": ["and where"]})
    assert kind.__name__ in (errors.__doc__ or ""), "the tree in the docstring has every class"
