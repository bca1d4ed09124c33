"""vLLM as an engine: `/v1/completions`, and weights reloaded from a folder in development mode.

vLLM's CPU builds pack the output head apart and, where it is tied to the embeddings, keep the old one when
weights are reloaded. So weights always travel with a head of their own, which those builds take and others
pass over; that this one does is for the engine's fixed text to show.
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
        "engine.weights_folder) under the same path; a folder it does not see ends it. Serve in the precision of the "
        "recipe, or raise engine.tolerance: look at its log."
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
