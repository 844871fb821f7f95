"""NVIDIA's DL4AGX: PETR and PETRv2 in two graphs; the caller computes the position embedding."""
