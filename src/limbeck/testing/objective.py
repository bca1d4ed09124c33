"""The reverse KL, written as plainly as it can be: a start for an objective of your own, and a twin for tests."""

from __future__ import annotations

from typing import Any


class PlainReverseKL:
    """D = sum_v p (log p - log q)."""

    def pull(self, p: Any, logp: Any, logq: Any) -> Any:
        return p * (logp - logq)

    def gain(self, logp: Any, logq: Any) -> Any:
        return logp - logq

    def value(self, p: Any, logp: Any, logq: Any) -> Any:
        return p * (logp - logq)
