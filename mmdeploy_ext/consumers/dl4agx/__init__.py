"""NVIDIA's DL4AGX: PETR and PETRv2 in two graphs whose caller computes the position embedding."""
