"""ImVoxelNet: boxes in 3D of one picture, by a volume of voxels that sample its features."""
