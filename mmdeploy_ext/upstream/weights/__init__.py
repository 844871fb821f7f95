"""Checkpoints: strict and safe loading, and conversion from other repositories."""
