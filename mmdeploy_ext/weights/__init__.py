"""Checkpoints: strict and safe loading, and those of other repositories."""
