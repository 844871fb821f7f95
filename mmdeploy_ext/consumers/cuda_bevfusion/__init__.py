"""NVIDIA's CUDA-BEVFusion."""
