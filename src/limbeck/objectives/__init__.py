"""What the student minimises, and its exact gradient."""

from limbeck.objectives.fused import Dense, Measured, Sampled, Target, Tokens, TopK, distillation_loss
from limbeck.objectives.head import Head

__all__ = ["Dense", "Head", "Measured", "Sampled", "Target", "Tokens", "TopK", "distillation_loss"]
