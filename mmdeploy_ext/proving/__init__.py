"""Proofs of exported files: `ladder.prove` is the entry, and its module tells how a verdict comes about."""
