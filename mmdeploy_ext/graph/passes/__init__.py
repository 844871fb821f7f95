"""One pass per file; each takes a model, which stays as it is, and returns one.

In their docstrings a pass fires on what it changes.
"""
