"""TensorRT: engines built, described and run."""
