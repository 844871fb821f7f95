"""Subcommands of `graph.py`, a module per kind; each has a dict `COMMANDS`."""
