"""Search for the first tensor in which ONNX differs from PyTorch."""
