"""NVIDIA's CUDA-BEVFusion without CUDA: what its files have to be, and its loop in numpy."""
