"""PETR and PETRv2: cameras whose tokens carry positions in 3D; PETRv2 also sees the frame before."""
