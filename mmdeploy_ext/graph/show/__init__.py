"""Graphs as text and as drawings."""
