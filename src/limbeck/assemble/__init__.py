"""From a recipe to a run: the only place that chooses between backends."""
