"""AdamW whose states are float32, whatever the weights are held in.

Of a weight in bfloat16 a float32 *master* is kept: gradients of micro-batches are summed, clipped and applied in
float32, and the weight is its master rounded to nearest. bfloat16 has 8 significant bits, so an update below a 256th
of a weight would be lost at every step; in the master it adds up. Rounding at random, the other way out, keeps no
master but wanders: `benchmarks/precision.py` has both in numbers.

The master is a part of the optimizer's state, so a checkpoint holds it and a resumed run goes on to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from limbeck.config.learner import LocalLearnerConfig
from limbeck.models.widening import NARROW

MASTER = "master"  # of the optimizer's state


class MasterAdamW(torch.optim.AdamW):
    """torch's fused AdamW; with masters of the weights that are narrower than float32."""

    def __init__(self, groups: Sequence[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, lr=lr, betas=betas, fused=True)
        self.narrow = [p for group in self.param_groups for p in group["params"] if p.dtype in NARROW]

    def _begin(self, parameter: nn.Parameter) -> dict[str, Any]:
        """Its state, from the first gradient on: a copy of the student that only samples has none."""
        if self._target(parameter) is parameter:
            self.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, dtype=torch.float32),
                "exp_avg_sq": torch.zeros_like(parameter, dtype=torch.float32),
                MASTER: parameter.detach().float(),
            }
        state: dict[str, Any] = self.state[parameter]
        return state

    def collect(self) -> None:
        """Take up the gradients of one micro-batch. To be called after each backward pass."""
        for parameter in self.narrow:
            if parameter.grad is not None:
                master, grad = self._begin(parameter)[MASTER], parameter.grad.float()
                master.grad = grad if master.grad is None else master.grad.add_(grad)
                parameter.grad = None

    def targets(self) -> list[Tensor]:
        """What has the gradients and is updated: the weights, or their masters."""
        return [self._target(parameter) for group in self.param_groups for parameter in group["params"]]

    def _target(self, parameter: nn.Parameter) -> Tensor:
        state: dict[str, Any] = self.state.get(parameter, {}) if parameter.dtype in NARROW else {}
        found: Tensor = state.get(MASTER, parameter)
        return found

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for parameter in self.narrow:
            self._target(parameter).grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        if not self.narrow:
            return super().step(closure)  # type: ignore[no-any-return]
        for group in self.param_groups:
            trained = [p for p in group["params"] if self._target(p).grad is not None]
            states = [self.state[parameter] for parameter in trained]
            targets = [self._target(parameter) for parameter in trained]
            adamw(
                targets, [target.grad for target in targets if target.grad is not None],
                [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states], [],
                [state["step"] for state in states], fused=True, amsgrad=False, beta1=group["betas"][0],
                beta2=group["betas"][1], lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"],
                maximize=False,
            )  # fmt: skip
            for parameter, target in zip(trained, targets, strict=True):
                if target is not parameter:
                    parameter.copy_(target)
        return None


def make_optimizer(parameters: Sequence[nn.Parameter], config: LocalLearnerConfig) -> MasterAdamW:
    """Weight decay is for matrices alone."""
    return MasterAdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=config.betas,
    )
