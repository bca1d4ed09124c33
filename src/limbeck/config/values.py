"""What a value of a recipe may be: the bounds of every kind of number and text, each decided here once.

A table refuses in `Config` what no value may be, wherever it stands (`fault_of`); a key adds the bounds of its type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from limbeck.formatting import shown

MOST = 10**9  # of whatever is counted: steps, tokens, rows
LONGEST_LINE, LONGEST_TEXT = 4000, 100_000  # characters
MOST_FOLDERS = 100  # of a path, one in another
MOST_URLS = 1000
LONGEST_NAME = 100  # characters; a part of a file's name, of which a file system takes 255 bytes
MOST_VALUES, DEEPEST = 10_000, 20  # of one table, all lists and tables in it included
HiddenDtype: TypeAlias = Literal["float32", "bfloat16", "int8"]  # of hidden states on the wire
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _one_line(text: str) -> str:
    """Raises `ValueError` for a line break or a tab, which `fault_of` allows in a text."""
    if odd := next((character for character in text if character in "\n\r\t"), None):
        raise ValueError(f"{shown(text)} has {odd!r} in it; expected one line of text")
    return text


def _name(text: str) -> str:
    """Raises `ValueError` for what is no part of a file's name everywhere."""
    if not NAME.fullmatch(text):
        raise ValueError(
            f"{shown(text)} is no name; expected a letter or a digit, and then letters, digits, '.', '_' and '-'; "
            "letters are a to z and A to Z"
        )
    return text


def _place(text: str) -> str:
    """Raises `ValueError` for a part of a path that no file system takes."""
    if longest := next((part for part in PurePath(text).parts if len(part.encode()) > 255), None):
        raise ValueError(f"{shown(longest)} has {len(longest.encode())} bytes; a file's name has at most 255")
    if (depth := len(PurePath(text).parts)) > MOST_FOLDERS:
        raise ValueError(f"a path of {depth} parts; expected at most {MOST_FOLDERS}")
    return text


def _url(text: str) -> str:
    """Raises `ValueError` for what is no address of a server."""
    import httpx  # takes a while, and most recipes have no server

    if not text.startswith(("http://", "https://")):
        raise ValueError(f"url {shown(text)} must begin with http:// or https://")
    try:
        url, parts = httpx.URL(text), urlsplit(text)  # each takes what the other refuses
        good = bool(url.host and parts.hostname) and parts.port != 0 and len(text.split()) == 1
        secret = bool(parts.username or parts.password or parts.query or parts.fragment or {"?", "#"} & set(text))
    except (httpx.InvalidURL, ValueError):  # a port above 65535, too
        good = secret = False
    if secret:
        raise ValueError(
            "url has a name, a password, a ? or a # in it, expected http://HOST:PORT and perhaps a path; put the "
            "server's token into token_env"
        )
    if not good:
        raise ValueError(f"url {shown(text)} is no address; expected http://HOST:PORT with a port from 1 to 65535")
    return text


def _urls(urls: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """Raises `ValueError` for none, too many, and what is no address."""
    given = (urls,) if isinstance(urls, str) else urls
    if not 1 <= len(given) <= MOST_URLS:
        raise ValueError(f"{len(given)} addresses are given, expected 1 to {MOST_URLS}")
    for url in given:
        _url(url)
    return urls


def check_pattern(text: str) -> str:
    """Raises `ValueError` for what is no regular expression."""
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError, MemoryError) as error:
        why = str(error) or "it is too large"
        raise ValueError(f"pattern {shown(text)} is not a regular expression: {why}") from None
    return text


PositiveInt: TypeAlias = Annotated[int, Field(ge=1, le=MOST)]
Count: TypeAlias = Annotated[int, Field(ge=0, le=MOST)]
TokenId: TypeAlias = Annotated[int, Field(ge=0, le=MOST)]
Concurrency: TypeAlias = Annotated[int, Field(ge=1, le=4096)]  # connections, threads
Seed: TypeAlias = Annotated[int, Field(ge=0, le=2**63 - 1)]
Positive: TypeAlias = Annotated[float, Field(ge=1e-12, le=1e12, allow_inf_nan=False)]
NonNegative: TypeAlias = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Temperature: TypeAlias = Annotated[float, Field(ge=1e-3, le=1e3, allow_inf_nan=False)]
Seconds: TypeAlias = Annotated[float, Field(ge=1e-3, le=10**7, allow_inf_nan=False)]  # 10**7: 115 days
Text: TypeAlias = Annotated[str, Field(max_length=LONGEST_TEXT)]  # line breaks and all
Line: TypeAlias = Annotated[str, Field(min_length=1, max_length=LONGEST_LINE), AfterValidator(_one_line)]
Place: TypeAlias = Annotated[Line, AfterValidator(_place)]  # a file, a folder, or a name of a hub
Name: TypeAlias = Annotated[  # a part of a file's name
    str, Field(min_length=1, max_length=LONGEST_NAME), AfterValidator(_name)
]
Url: TypeAlias = Annotated[Line, AfterValidator(_url)]
Urls: TypeAlias = Annotated[str | tuple[str, ...], AfterValidator(_urls)]
Pattern: TypeAlias = Annotated[Text, AfterValidator(check_pattern)]


def fault_of(table: Mapping[Any, Any]) -> str | None:
    """The first value of a table that no key may have, at any depth, and what is wrong with it; None in a good one."""
    pending: list[tuple[Any, str, int]] = [(table, "", 0)]
    count = 0
    while pending:
        value, where, depth = pending.pop()
        count += 1
        if count > MOST_VALUES:
            return f"there are more than {MOST_VALUES:,} values up to {where}"
        if depth > DEEPEST:
            return f"{where} is nested more than {DEEPEST} deep"
        if isinstance(value, Mapping):
            for key, part in value.items():
                if fault := _fault_of_one(key):
                    return f"{f'{where}: ' if where else ''}the key {shown(key)} {fault}"
                pending.append((part, f"{where}.{key}" if where else str(key)[:LONGEST_NAME], depth + 1))
        elif isinstance(value, list | tuple | set | frozenset):
            pending += [(part, where, depth + 1) for part in value]
        elif fault := _fault_of_one(value):
            return f"{where} = {shown(value)} {fault}"
    return None


def _fault_of_one(value: Any) -> str | None:
    if isinstance(value, str):
        if len(value) > LONGEST_TEXT:
            return f"has {len(value):,} characters, expected at most {LONGEST_TEXT:,}"
        odd = next((character for character in value if _is_odd(ord(character))), None)
        return None if odd is None else f"has the character U+{ord(odd):04X} in it, expected text without such"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "does not fit into 64 bits, expected a smaller number"
    if isinstance(value, float) and not isfinite(value):
        return "is not finite, expected a finite number"
    return None


def _is_odd(code: int) -> bool:
    """Control characters but tab and line breaks, and halves of surrogate pairs."""
    return (code < 0x20 and code not in (9, 10, 13)) or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000
