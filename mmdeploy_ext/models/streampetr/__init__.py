"""StreamPETR: camera-only 3D detection with a temporal memory."""
