"""TensorRT deployments of BEVFormer with plug-ins for its rotation and attentions."""
