"""Parts of any detector: recorded on the user's test path, exported, swapped in, proven."""
