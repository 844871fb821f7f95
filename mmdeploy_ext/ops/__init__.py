"""Operators that need help to reach ONNX; one per file: traceable form, symbolic, eager form."""
