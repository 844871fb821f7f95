"""The kinds of proofs and their levels: graph, tensors, results, sequences, metrics."""
