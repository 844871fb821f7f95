"""The kinds of proofs, and what each does on the levels: graph, tensors, results, sequences, metrics."""
