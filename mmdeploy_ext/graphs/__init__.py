"""Any ONNX file: reading, passes, differences, reduction."""
