"""The proof of any PyTorch module and any ONNX file."""
