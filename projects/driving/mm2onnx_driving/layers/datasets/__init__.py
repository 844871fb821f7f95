"""Data sets, pipeline steps and samplers of the 3D families."""
