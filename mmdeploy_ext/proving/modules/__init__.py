"""The proof of any PyTorch module and any ONNX file, without a config, a checkpoint or a family."""
