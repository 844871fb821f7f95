"""Programs that are copied into kits: each runs the inputs on an engine, without mm2onnx."""
