"""Reading and writing ONNX files, and what their graphs hold."""
