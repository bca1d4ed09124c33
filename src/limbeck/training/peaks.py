"""How much known accelerators can do at best: dense bfloat16 products, as their makers' data sheets have it.

peak_of("NVIDIA H100 80GB HBM3")     989e12 operations a second
peak_of("some new card")             None: no utilisation is reported for it
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# The first row all of whose words are in a device's name. Two multiply-adds of a sparse unit are not counted.
PEAKS = (
    ("GB200", 2500e12), ("B200", 2250e12), ("GH200", 989e12), ("H200", 989e12), ("H800", 989e12),
    ("H100 PCIe", 756e12), ("H100 NVL", 835e12), ("H100", 989e12), ("H20", 148e12), ("A100", 312e12), ("A800", 312e12),
    ("L40S", 362e12), ("L40", 181e12), ("L4", 121e12), ("A40", 150e12), ("A30", 165e12), ("A10", 125e12),
    ("RTX A6000", 155e12), ("RTX 4090", 165e12), ("RTX 3090", 71e12),
    ("MI325X", 1307e12), ("MI300X", 1307e12), ("MI250X", 383e12), ("MI250", 362e12),
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What a role's model costs a token, and what its devices do at best.

    Two operations a parameter forward, twice as many backward (a third less of it where only adapters are trained, for
    the base has no gradient). Attention is not counted.
    """

    parameters: int
    peak: float  # operations a second of all devices of the role
    per_parameter: int = 2  # 6 with the backward pass of whole weights, 4 with that of adapters

    def flops(self, tokens: int) -> float:
        return float(self.per_parameter) * self.parameters * tokens


def peak_of(device: str) -> float | None:
    """Operations a second of the device of this name; None where it is not known."""
    words = set(re.split(r"[^A-Za-z0-9]+", device.upper()))
    return next((peak for names, peak in PEAKS if set(names.upper().split()) <= words), None)
