"""Recorded references: what a detector computes in the environment that trained it."""
