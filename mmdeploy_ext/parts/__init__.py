"""Parts of any detector: recorded on the user's own test path, exported, swapped in, proven."""
