"""One pass per file; each takes a model, which stays unchanged, and returns one."""
