"""Learners own the student's weights and their optimizer."""
