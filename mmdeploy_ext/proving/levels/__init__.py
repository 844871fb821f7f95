"""The levels of the proof."""
