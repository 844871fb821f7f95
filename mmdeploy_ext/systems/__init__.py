"""A folder for each system: its model, family, and the files and loops of programs that load it."""
