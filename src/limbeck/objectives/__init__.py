"""What the student minimises, and its exact gradient."""

from limbeck.models.head import Head
from limbeck.objectives.fused import distillation_loss
from limbeck.objectives.targets import Dense, Measured, Sampled, Target, Tokens, TopK

__all__ = ["Dense", "Head", "Measured", "Sampled", "Target", "Tokens", "TopK", "distillation_loss"]
