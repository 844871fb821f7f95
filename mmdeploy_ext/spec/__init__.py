"""What a file promises and a verdict says, as plain data."""
