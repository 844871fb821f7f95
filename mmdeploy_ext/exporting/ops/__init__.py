"""Operators that need help to reach ONNX, by subject; docs/custom-operators.md says how to write one."""
