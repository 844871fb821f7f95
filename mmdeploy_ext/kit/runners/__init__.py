"""Programs that are copied into kits: each runs the inputs of a kit on an engine, without mm2onnx."""
