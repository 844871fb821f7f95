"""Autoware's perception nodes without Autoware: what their files have to be, and their loops in numpy."""
