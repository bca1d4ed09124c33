"""What a student in bfloat16 learns: its updates rounded to nearest, rounded at random, or kept in float32 masters.

    python benchmarks/precision.py [--steps 50] [--lr 2e-4 2e-5 2e-6]

Trains the demo's student on the demo's task with each kind of update, from the same weights, samples and rates, and
prints one JSON line for each: the reverse KL to the teacher over the last steps, and how far the weights have moved.
Only the update differs: forward and backward passes run in float32 on weights that bfloat16 can hold, for processors
without bfloat16 units take a hundred times as long for a matrix product.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import limbeck
from limbeck.learners import local
from limbeck.learners.optimizer import MasterAdamW, make_optimizer

LAST = 10  # steps whose KL is averaged


class Rounding(MasterAdamW):
    """AdamW whose float32 weights are what bfloat16 can hold after every step."""

    kind = "nearest"

    @classmethod
    def of(cls, parameters: Sequence[torch.nn.Parameter], config: Any) -> Rounding:
        made = make_optimizer(parameters, config)
        made.__class__ = cls
        for weight in parameters:
            weight.data.copy_(weight.data.bfloat16())
        made.rng = torch.Generator().manual_seed(0)
        made.masters = {weight: weight.detach().clone() for weight in parameters} if cls.kind == "masters" else {}
        return made

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for weight, master in self.masters.items():
            weight.copy_(master)
        super().step()
        for weight in self.targets():
            if self.kind == "masters":
                self.masters[weight].copy_(weight)
            weight.copy_(at_random(weight, self.rng) if self.kind == "stochastic" else weight.bfloat16())


class Stochastic(Rounding):
    kind = "stochastic"


class Masters(Rounding):
    kind = "masters"


def at_random(weight: Tensor, rng: torch.Generator) -> Tensor:
    """Up or down, so that the expectation is the weight: 16 random bits added below those that stay."""
    noise = torch.randint(0, 2**16, weight.shape, generator=rng, dtype=torch.int32)
    return (weight.view(torch.int32) + noise).bitwise_and_(-(2**16)).view(torch.float32)


def trained(kind: str, lr: float, steps: int) -> dict[str, Any]:
    """A run of the demo with one kind of update."""
    makers = {"float32": make_optimizer, "nearest": Rounding.of, "stochastic": Stochastic.of, "masters": Masters.of}
    seen: dict[str, Any] = {}

    def make(parameters: Sequence[torch.nn.Parameter], config: Any) -> MasterAdamW:
        optimizer = makers[kind](parameters, config)
        seen["now"], seen["before"] = parameters, [weight.detach().clone() for weight in parameters]
        return optimizer

    plain, local.make_optimizer = local.make_optimizer, make
    try:
        with tempfile.TemporaryDirectory() as folder:
            overrides = [
                f"output={folder}", f"steps={steps}", f"learner.lr={lr}", "learner.schedule=constant",
                "learner.warmup_steps=10", "eval.every=0", "eval.prompts=8", f"checkpoint.every={steps}",
                "rollout.prompts_per_step=32",
            ]  # fmt: skip
            result = limbeck.train("recipes/demo.toml", overrides)
    finally:
        local.make_optimizer = plain
    kls = [line["reverse_kl/exact"] for line in result.steps]
    moved = sum(float((w.detach() - b).square().sum()) for w, b in zip(seen["now"], seen["before"], strict=True)) ** 0.5
    return {
        "what": "precision", "update": kind, "lr": lr, "steps": steps, "first": round(kls[0], 4),
        "kl": round(sum(kls[-LAST:]) / len(kls[-LAST:]), 4), "moved": round(moved, 4),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--lr", type=float, nargs="+", default=[2e-4, 2e-5, 2e-6])
    parser.add_argument("--update", nargs="+", default=["float32", "nearest", "stochastic", "masters"])
    args = parser.parse_args()
    for lr in args.lr:
        for kind in args.update:
            print(json.dumps(trained(kind, lr, args.steps)), flush=True)


if __name__ == "__main__":
    main()
