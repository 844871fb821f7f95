"""mmdet3d's MVX-Net: SECOND whose points have features of a picture."""
