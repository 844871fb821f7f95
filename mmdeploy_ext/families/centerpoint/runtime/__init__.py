"""CenterPoint without torch: from points to boxes."""
