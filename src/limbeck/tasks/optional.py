"""Packages that only some tasks need, imported when they are needed."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from limbeck.errors import DataError


def load(package: str, extra: str) -> Any:
    """The imported package. Raises `DataError` naming the extra to install where it is missing."""
    require(package, extra)
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise DataError(
            f"the package {package!r} is installed but cannot be imported: {error}. "
            f"Reinstall it: pip install --force-reinstall 'limbeck[{extra}]'"
        ) from error


def require(package: str, extra: str) -> None:
    """Raises `DataError` where a package is not installed, without importing it."""
    if importlib.util.find_spec(package.partition(".")[0]) is None:
        raise DataError(
            f"this task needs the package {package.partition('.')[0]!r}, which is not installed. "
            f"Install it: pip install 'limbeck[{extra}]'"
        )
