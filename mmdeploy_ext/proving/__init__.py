"""Proofs of exported files; `ladder.prove` is the entry."""
