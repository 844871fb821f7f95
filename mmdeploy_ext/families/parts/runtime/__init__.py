"""What the runtimes of several families share, without torch."""
