"""Frames and decoding that several systems share, in numpy."""
