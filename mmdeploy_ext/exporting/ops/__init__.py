"""Operators that need help to reach ONNX; one per file. See docs/custom-operators.md."""
