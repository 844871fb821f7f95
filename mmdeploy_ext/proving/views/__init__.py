"""Views of a verdict: table, page, and the next command."""
