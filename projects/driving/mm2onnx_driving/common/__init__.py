"""Graphs, references and data that several systems share."""
