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
    odd = [place for place, character in enumerate(token) if not "!" <= character <= "~"]
    if odd:
        where = "the end" if odd[0] == len(token.rstrip()) else f"place {odd[0] + 1} of {len(token)}"
        raise RecipeError(
            f"{named_by} names {variable!r}, whose token has a character at {where} that no bearer token may have (a "
            "space, a line break, or not ASCII). Set it without."
        )
    return token
