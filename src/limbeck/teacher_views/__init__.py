"""How a teacher sees a rollout: the same tokens, the same response after another prompt, or other tokens."""
