"""What writes the tables of the pages."""
