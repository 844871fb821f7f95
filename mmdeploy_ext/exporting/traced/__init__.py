"""A trace of a detector's own test path, which says by itself what it has frozen."""
