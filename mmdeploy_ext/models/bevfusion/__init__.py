"""BEVFusion of cameras and LiDAR."""
