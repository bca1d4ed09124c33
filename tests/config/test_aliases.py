"""Other trainers' names for keys point to keys that there are."""

from __future__ import annotations

from limbeck.config.aliases import ALIASES, NOTES
from limbeck.config.base import keys_of
from limbeck.config.recipe import Recipe

KEYS = set(keys_of(Recipe))


def test_every_target_is_a_key() -> None:
    assert len(ALIASES) > 40
    assert set(ALIASES.values()) <= KEYS
    assert set(NOTES) <= set(ALIASES.values())


def test_no_name_stands_for_two_keys_or_is_one_at_the_top() -> None:
    assert not set(ALIASES) & set(Recipe.model_fields)
