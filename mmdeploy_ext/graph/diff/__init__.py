"""Where two ONNX files differ."""
