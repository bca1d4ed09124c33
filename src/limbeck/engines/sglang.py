"""SGLang as an engine: `/generate`, and weights from a folder or in the request.

Every answer names the weights it was sampled with (`weight_version`), so a restart shows at once.
"""

from __future__ import annotations

import base64
import pickle
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from limbeck.engines.weights_folder import WeightsFolder
from limbeck.protocols import Policy
from limbeck.wire import sglang
from limbeck.wire.dialects import JsonDialect
from limbeck.wire.http import Pool
from limbeck.wire.score import WireError

if TYPE_CHECKING:
    import torch

PART_BYTES = 512 << 20  # bytes of weights in one request


class SGLangServer(JsonDialect):
    """`weights`: how they travel."""

    remedy = (
        "Start SGLang with the student's model, on a machine that sees the folder of the weights under the same path "
        "(set engine.weights_folder to one that it sees), or set engine.weights = 'tensors'. Weights of other shapes "
        "end it: look at its log."
    )

    def __init__(self, weights: Literal["disk", "tensors"]) -> None:
        super().__init__("sglang", sglang)
        self.weights = weights

    async def push(self, pool: Pool, policy: Policy, label: str, dtype: str, weights: WeightsFolder) -> int:
        """See `served.Server`."""
        if self.weights == "disk":
            before = weights.written
            async with weights.of(policy, dtype, partial(policy.save, dtype=dtype)) as folder:
                size = weights.written - before
                body = {"model_path": str(folder), "weight_version": label, "flush_cache": True}
                await self._done(pool, "/update_weights_from_disk", body)
            return size
        await self._begin(pool)
        sent = 0
        for part in _parts(policy, dtype):
            # A pickle is what SGLang reads; it is made here and never read here.
            packed = base64.b64encode(pickle.dumps(part)).decode()
            body = {"serialized_named_tensors": [packed], "weight_version": label, "flush_cache": True}
            await self._done(pool, "/update_weights_from_tensor", body)
            sent += sum(tensor.nbytes for _, tensor in part)
        await self._done(pool, "/end_weight_update", {})
        return sent

    async def _begin(self, pool: Pool) -> None:
        try:
            await self._done(pool, "/begin_weight_update", {})
        except WireError as error:
            if error.kind != "refused" or "already open" not in str(error):
                raise
            await self._done(pool, "/end_weight_update", {})  # of an update that was cut off
            await self._done(pool, "/begin_weight_update", {})

    async def _done(self, pool: Pool, path: str, body: dict[str, Any]) -> None:
        answer = await self.tell(pool, path, body)
        if not isinstance(answer, dict) or answer.get("success") is not True:
            raise WireError("refused", f"{path} answered {answer}")


def _parts(policy: Policy, dtype: str) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """The weights in requests of a bounded size, each tensor with memory of its own."""
    part: list[tuple[str, torch.Tensor]] = []
    size = 0
    for name, tensor in policy.tensors(dtype):
        more = tensor.numel() * tensor.element_size()
        if part and size + more > PART_BYTES:
            yield part
            part, size = [], 0
        part.append((name, tensor.detach().to("cpu", copy=True).contiguous()))
        size += more
    yield part
