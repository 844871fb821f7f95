"""Proofs of exported files; `kinds` chooses one by the model's samples."""
