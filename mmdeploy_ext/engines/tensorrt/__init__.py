"""TensorRT: building engines, describing them, running them."""
