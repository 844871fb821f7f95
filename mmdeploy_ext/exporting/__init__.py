"""Stages of PyTorch to one ONNX file."""
