"""Teacher `vllm`: a vLLM server, stock or one that acknowledges a scoring temperature."""

from __future__ import annotations

from limbeck.wire import vllm
from limbeck.wire.dialects import JsonDialect


def vllm_dialect() -> JsonDialect:
    """How a vLLM server is asked."""
    return JsonDialect("vllm", vllm, names_model=True)
