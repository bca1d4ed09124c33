"""The seams over Ray: the only place that imports it."""
