"""How a teacher's answers at temperature 1 become answers at the rollout temperature."""
