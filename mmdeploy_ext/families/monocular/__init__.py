"""mmdet3d's detectors of boxes in 3D in a single picture: FCOS3D, PGD, SMOKE."""
