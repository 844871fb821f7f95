"""The first tensor in which ONNX leaves PyTorch."""
