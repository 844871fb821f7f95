"""A bird's-eye view that attends to its predecessor and to all cameras: layers and steps."""
