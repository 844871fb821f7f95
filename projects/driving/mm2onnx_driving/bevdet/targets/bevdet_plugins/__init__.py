"""TensorRT deployments of BEVDet, with their plug-ins."""
