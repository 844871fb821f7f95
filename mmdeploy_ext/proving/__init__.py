"""Proofs of exported files; `kinds` chooses one by the samples of a model."""
