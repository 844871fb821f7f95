"""Inputs of a proof: pictures, drives, sweeps and voxels."""
