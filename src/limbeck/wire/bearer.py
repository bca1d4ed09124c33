"""The bearer token of a server, from the environment. It is in no message."""

from __future__ import annotations

import os
import re

from limbeck.errors import RecipeError

NAME = re.compile("[A-Z_][A-Z0-9_]*")  # as variables are mostly written; a token in its place is not printed


def bearer_token(variable: str, named_by: str) -> str:
    """The token in `variable`, which `named_by` (a recipe's key or an option) names.

    Raises `RecipeError`, without the token, where there is none, or where no header could carry it.
    """
    token = os.environ.get(variable)
    if not token:
        shown = repr(variable) if NAME.fullmatch(variable) else "something that does not look like a variable's name"
        raise RecipeError(
            f"{named_by} names {shown}, but the environment has no such variable. Set it to the token, and give the "
            "variable's name here."
        )
    if token != token.strip() or not all(" " <= character <= "~" for character in token):
        raise RecipeError(
            f"{named_by} names {variable!r}, whose token has a character that no header can carry (white space at an "
            "end, a line break, or not ASCII). Set it without."
        )
    return token
