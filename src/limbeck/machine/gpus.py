"""Memory and utilisation of the GPUs that this process computes with. Empty where there is none, and without torch."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any

logger = logging.getLogger("limbeck")


def gpus_in_use() -> Iterator[tuple[int, Any]]:
    """Number and `torch.cuda` of each device on which this process holds memory. Never starts CUDA itself."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return
    for number in range(torch.cuda.device_count()):
        if torch.cuda.memory_reserved(number):
            yield number, torch.cuda


def peak_memory() -> int:
    """Bytes that tensors of this process have taken at most so far, on the device where that was most."""
    return max((int(cuda.max_memory_allocated(number)) for number, cuda in gpus_in_use()), default=0)


class Utilisation:
    """Share of the last second in which a device computed. None once it cannot be had: that needs `nvidia-ml-py`."""

    def __init__(self) -> None:
        self.missing = False

    def of(self, number: int, cuda: Any) -> float | None:
        if self.missing:
            return None
        try:
            return float(cuda.utilization(number)) / 100
        except Exception as error:  # ModuleNotFoundError, RuntimeError, the driver's own
            self.missing = True
            logger.info(
                "GPU utilisation is not recorded: %s: %s. It needs: pip install nvidia-ml-py",
                type(error).__name__, str(error).rstrip("."),
            )  # fmt: skip
            return None
