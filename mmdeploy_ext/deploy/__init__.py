"""From config and checkpoint to files."""
