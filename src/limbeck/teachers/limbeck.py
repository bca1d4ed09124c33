"""Teacher `limbeck`: our own scoring server, `limbeck serve`, exact at any temperature."""

from __future__ import annotations

from limbeck.wire.dialects import BinaryDialect


def limbeck_dialect() -> BinaryDialect:
    """How `limbeck serve` is asked."""
    return BinaryDialect()
