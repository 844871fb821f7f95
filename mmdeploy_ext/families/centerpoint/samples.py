"""Samples of mmdet3d's test loader as sweeps, dumps read back, detections as results of the data set."""

from mmdeploy_ext.families.parts.generated import generated
from mmdeploy_ext.families.parts.samples import result
from mmdeploy_ext.families.parts.sweep_samples import dumped, moments, sweep

__all__ = ['dumped', 'generated', 'moments', 'result', 'sweep']
