"""Export and proof of streaming models: frames in order, state between them."""
