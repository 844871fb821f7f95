"""The comparison of two ONNX files: structure, and the nodes where errors are born."""
