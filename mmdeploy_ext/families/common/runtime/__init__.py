"""Code that runtimes of several families share, without torch."""
