"""What the student minimises, and its exact gradient."""

from limbeck.models.head import Head
from limbeck.objectives.check import ObjectiveReport, check_objective
from limbeck.objectives.divergences import JSD, ForwardKL, ReverseKL
from limbeck.objectives.fused import distillation_loss
from limbeck.objectives.loss import Loss, loss_of
from limbeck.objectives.targets import Dense, Grouped, Measured, Sampled, Target, Tokens, TopK
from limbeck.protocols import Objective

__all__ = [
    "JSD",
    "Dense",
    "ForwardKL",
    "Grouped",
    "Head",
    "Loss",
    "Measured",
    "Objective",
    "ObjectiveReport",
    "ReverseKL",
    "Sampled",
    "Target",
    "Tokens",
    "TopK",
    "check_objective",
    "distillation_loss",
    "loss_of",
]
