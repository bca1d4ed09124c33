"""Teacher `sglang`: a SGLang server, stock or one that acknowledges a scoring temperature."""

from __future__ import annotations

from limbeck.teachers.dialects import JsonDialect
from limbeck.wire import sglang


def sglang_dialect() -> JsonDialect:
    """How a SGLang server is asked."""
    return JsonDialect("sglang", sglang)
