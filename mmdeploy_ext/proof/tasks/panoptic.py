"""Level 3 of a proof for panoptic maps: segments are matched one to one, by class and IoU."""

from __future__ import annotations

from mmdeploy_ext.proof.tasks.mask import draw_pair, fit_pair, match_detections, pair_up

__all__ = ['draw_pair', 'fit_pair', 'match_detections', 'pair_up']
