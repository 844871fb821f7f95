"""Does the preprocessing rule in a file prepare samples as the model's own pipeline does? A file per kind."""
