"""Plug-ins of TensorRT in numpy, for the programs that load them."""
