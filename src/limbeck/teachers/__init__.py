"""Teachers mark every token the student sampled, at the temperature it was sampled at."""
