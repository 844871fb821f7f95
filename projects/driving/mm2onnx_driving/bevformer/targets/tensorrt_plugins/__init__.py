"""TensorRT deployments of BEVFormer, with their plug-ins."""
