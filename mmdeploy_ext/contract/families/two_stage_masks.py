"""Two-stage detectors with masks: their options, and what their files tell `runtime/two_stage_masks`."""

from __future__ import annotations

from mmdeploy_ext.contract.families.two_stage import FACTS, OPTIONS
from mmdeploy_ext.contract.schema import record
from mmdeploy_ext.contract.values import FRACTION

__all__ = ['OPTIONS', 'POSTPROCESS']
POSTPROCESS = record(dict(FACTS, mask_thr=FRACTION), closed=False)
