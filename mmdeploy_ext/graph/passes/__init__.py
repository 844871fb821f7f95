"""One pass per file; each takes a model, which stays as it is, and returns one."""
