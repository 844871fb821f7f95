"""Weights by seeded rules, for proofs and measurements without a trained checkpoint."""
