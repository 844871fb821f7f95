"""CenterPoint: mmdet3d's own LiDAR detector, exported as a sparse backbone and a dense head."""
