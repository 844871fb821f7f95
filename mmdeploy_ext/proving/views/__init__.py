"""A verdict as table and page."""
