"""Teacher `sglang`: a SGLang server, stock or one that acknowledges a scoring temperature."""

from __future__ import annotations

from limbeck.wire import sglang
from limbeck.wire.dialects import JsonDialect


def sglang_dialect() -> JsonDialect:
    """How a SGLang server is asked."""
    return JsonDialect("sglang", sglang)
