"""What a family of models gives to the shared code, and the registry."""
