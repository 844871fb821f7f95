"""Sparse convolution networks: a typed graph, the libspconv dialect, and a portable ONNX form."""
