"""Environments decide what comes before, between and after the student's turns."""
