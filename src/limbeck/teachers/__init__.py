"""Teachers score every token that the student sampled, and stamp each score with the temperature it is at."""
