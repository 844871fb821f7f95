"""What `test_cfg` decides about a dense head, as its own `get_bboxes` reads it."""

import dataclasses

from torch import nn

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.exporting.postprocess.nms_config import NmsConfig, nms_config, positive
from projects.mmdet_plugin.dense.kinds import kind_of


def thresholds(head: nn.Module) -> NmsConfig:
    """Return the thresholds of a head; what its `get_bboxes` does not look at limits nothing.

    ConfigError: `test_cfg` lacks an entry that upstream reads, or has one that no graph repeats.
    """
    kind = kind_of(head)
    given = head.test_cfg or {}
    needed = [key for key in kind.needed if key not in kind.fixed]
    if missing := [key for key in needed if given.get(key) is None]:
        raise ConfigError(
            f'model.test_cfg has no {", ".join(missing)}, which {type(head).__name__} reads; expected '
            f'{", ".join(needed)}'
        )
    if kind.limit == 'topk':  # the best cells, without a suppression
        most = positive('topk', given['topk'])
        return NmsConfig(score_thr=0.0, nms_pre=most, iou_threshold=1.0, max_per_img=most)
    return dataclasses.replace(nms_config(head.test_cfg), **kind.fixed)
