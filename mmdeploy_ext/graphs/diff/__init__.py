"""Two graphs side by side: nodes and tensors that belong together, and the first one that differs."""
