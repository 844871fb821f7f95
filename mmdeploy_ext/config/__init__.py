"""Configs, and the modules of users' repositories that they import."""
