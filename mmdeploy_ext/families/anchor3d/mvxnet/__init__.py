"""mmdet3d's MVX-Net: SECOND with picture features at its points."""
