"""Errors, files, command lines, sources of classes, processes, taps and dumps."""
