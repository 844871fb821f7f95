"""Numbers of votes about boxes."""

VOTES_ABOVE, VOTE_SPREAD = 0.01, 0.025
"""Of PAA's score voting (mmdet 2.28.2 `paa_head.py`): boxes that overlap more vote, and how sharply."""
