"""The proof that a teacher answers what was asked, at the temperature it was asked at."""
