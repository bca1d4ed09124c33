"""The output head: from final hidden states to logits, kept apart so that logits are never stored whole.

Shape legend: N tokens, C tokens of one chunk, V vocabulary, d hidden width.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

FEW = 64  # rows, of decoding
HASHED_BYTES = 64 * 2**20  # of a head that are copied at a time while it is hashed


@dataclass(frozen=True, eq=False)
class Head:
    """`softcap(multiplier * (hidden @ weight.T + bias))`, the last layer of every supported model."""

    weight_Vd: Tensor
    bias_V: Tensor | None = None
    multiplier: float = 1.0  # Granite divides its logits, Cohere multiplies them
    softcap: float | None = None  # Gemma 2: softcap * tanh(logits / softcap)

    @property
    def vocabulary(self) -> int:
        return self.weight_Vd.shape[0]

    def narrow(self, vocabulary: int) -> Head:
        """The head over the first `vocabulary` tokens: how padded embedding tables are compared."""
        if vocabulary == self.vocabulary:
            return self
        bias_V = None if self.bias_V is None else self.bias_V[:vocabulary]
        return replace(self, weight_Vd=self.weight_Vd[:vocabulary], bias_V=bias_V)

    def to(self, device: torch.device) -> Head:
        """The head on a device; itself where it is there."""
        if self.weight_Vd.device == device:
            return self
        bias_V = None if self.bias_V is None else self.bias_V.to(device)
        return replace(self, weight_Vd=self.weight_Vd.to(device), bias_V=bias_V)

    def fingerprint(self) -> str:
        """Names this very head: hidden states travel with it, and whoever has the head knows it by it.

        Reads every byte (a gigabyte a second): keep it.
        """
        digest = hashlib.blake2b(digest_size=16)
        for tensor in (self.weight_Vd, self.bias_V):
            if tensor is None:
                digest.update(b"none")
                continue
            digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
            rows = max(1, HASHED_BYTES // max(1, tensor[:1].nbytes))
            for part in torch.split(tensor.detach(), rows):
                digest.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
        digest.update(f"{float(self.multiplier)!r} {self.softcap!r}".encode())
        return digest.hexdigest()

    def detach(self) -> Head:
        return replace(
            self,
            weight_Vd=self.weight_Vd.detach(),
            bias_V=None if self.bias_V is None else self.bias_V.detach(),
        )

    def logits(self, hidden_Cd: Tensor, out_CV: Tensor | None = None) -> Tensor:
        """[C, V] logits, in float32 (float64 for float64 weights) whatever the matmul's dtype.

        Without gradients they may be written to `out_CV`, where its dtype is theirs: new memory has its price.
        """
        weight_Vd = self.weight_Vd.to(hidden_Cd.dtype)
        bias_V = None if self.bias_V is None else self.bias_V.to(hidden_Cd.dtype)
        if out_CV is not None and bias_V is None and out_CV.dtype == hidden_Cd.dtype:
            logits_CV = torch.mm(hidden_Cd, weight_Vd.T, out=out_CV)
        else:
            logits_CV = at_least_float32(_product(hidden_Cd, weight_Vd, bias_V))
        if self.multiplier != 1.0:
            logits_CV = logits_CV * self.multiplier
        if self.softcap is not None:
            logits_CV = self.softcap * torch.tanh(logits_CV / self.softcap)
        return logits_CV


def _product(hidden_Cd: Tensor, weight_Vd: Tensor, bias_V: Tensor | None) -> Tensor:
    """`hidden @ weight.T + bias`. The CPU is half as fast again the other way round, for few rows."""
    few = hidden_Cd.ndim == 2 and len(hidden_Cd) <= FEW and hidden_Cd.device.type == "cpu"
    if not few or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return torch.nn.functional.linear(hidden_Cd, weight_Vd, bias_V)
    logits_CV = torch.mm(weight_Vd, hidden_Cd.t()).t().contiguous()
    return logits_CV if bias_V is None else logits_CV.add_(bias_V)


def at_least_float32(tensor: Tensor) -> Tensor:
    """bfloat16 and float16 lifted to float32; wider types as they are."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
