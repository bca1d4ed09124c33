"""Engines sample from the student."""
