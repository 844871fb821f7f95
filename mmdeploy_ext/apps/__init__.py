"""What the command-line tools do, without argument defaults of their own: one `main` per tool."""
