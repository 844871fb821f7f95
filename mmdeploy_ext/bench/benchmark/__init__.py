"""Engines against each other on one model: measuring, memory, profiles, tables and charts."""
