"""The bearer token of a server, from the environment. It is in no message."""

from __future__ import annotations

import os

from limbeck.errors import RecipeError


def bearer_token(variable: str, named_by: str) -> str:
    """The token in `variable`, which `named_by` (a recipe's key or an option) names.

    Raises `RecipeError`, without the token, where there is none, or where no header could carry it.
    """
    token = os.environ.get(variable)
    if not token:
        raise RecipeError(f"{named_by} names {variable!r}, but the environment has no such variable. Set it.")
    if token != token.strip() or not all(" " <= character <= "~" for character in token):
        raise RecipeError(
            f"{named_by} names {variable!r}, whose token has a character that no header can carry (white space at an "
            "end, a line break, or not ASCII). Set it without."
        )
    return token
