"""What depends on the task of a detector: how detections are matched and drawn."""
