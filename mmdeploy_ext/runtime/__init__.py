"""What users ship: preparation, inference, decoding and drawing in numpy, OpenCV and ONNX Runtime."""
