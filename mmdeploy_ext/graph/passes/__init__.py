"""One pass per file; each takes a model and returns one."""
