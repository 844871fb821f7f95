"""The proof: compare tensors, detections, sequences and metrics; report as a table, JSON and a page."""
