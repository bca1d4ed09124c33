"""vLLM as an engine: `/v1/completions`, and weights reloaded from a folder in development mode.

vLLM's CPU builds lose a tied output head when weights are reloaded. Weights therefore always travel with a
head of their own: a server that was started with an untied model takes it, one with a tied model passes it
over.
"""

from __future__ import annotations

from pathlib import Path

from limbeck.engines.untie import untie_head
from limbeck.protocols import Policy
from limbeck.wire import vllm
from limbeck.wire.dialects import JsonDialect
from limbeck.wire.http import Pool


class VLLMServer(JsonDialect):
    """Started with `VLLM_SERVER_DEV_MODE=1`."""

    remedy = (
        "Start vLLM with the student's model and VLLM_SERVER_DEV_MODE=1, on a machine that sees the run's folder (or "
        "engine.weights_folder) under the same path. If the model's embeddings are tied, start it with the folder that "
        "`limbeck untie MODEL OUT` writes: some builds lose a tied output head when weights are reloaded."
    )

    def __init__(self) -> None:
        super().__init__("vllm", vllm, names_model=True)

    async def push(self, pool: Pool, policy: Policy, label: str, folder: Path) -> None:
        """See `served.Server`."""
        policy.save(folder)
        untie_head(folder)
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        await self.tell(pool, "/collective_rpc", body)
        await self.tell(pool, "/reset_prefix_cache", {})
