"""LiDAR backbones of sparse convolutions: BEVFusion, CenterPoint, SECOND."""
