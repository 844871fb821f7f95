"""From modules of PyTorch to ONNX graphs."""
