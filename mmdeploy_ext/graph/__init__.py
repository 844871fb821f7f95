"""Inspecting and editing ONNX graphs. Imports neither torch nor mmcv."""
