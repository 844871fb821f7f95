"""Dense heads without torch: from outputs of a graph to detections."""
