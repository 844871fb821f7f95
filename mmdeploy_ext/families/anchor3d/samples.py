"""Detections as results of the data set; those of sweeps and dumps are in `parts/sweep_samples.py`."""

from mmdeploy_ext.families.parts.samples import result

__all__ = ['result']
