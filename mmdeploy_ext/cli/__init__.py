"""The command-line tools: one `main` each."""
