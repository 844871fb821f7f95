"""PETR and PETRv2: camera-only 3D detection; image tokens carry positions in 3D."""
