"""The first tensor in which ONNX differs from PyTorch."""
