"""The proof: compare tensors, detections, sequences and metrics; say so in a table, JSON and a page."""
