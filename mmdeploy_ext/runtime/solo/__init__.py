"""SOLO and SOLOv2 without torch: from outputs of a graph to instances."""
