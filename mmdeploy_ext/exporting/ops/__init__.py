"""Operators that need help to reach ONNX, by subject; docs/reference/custom-operators.md."""
