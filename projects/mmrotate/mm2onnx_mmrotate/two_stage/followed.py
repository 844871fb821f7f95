"""Methods of mmrotate that the graphs of two-stage detectors compute by themselves.

Hashes of the followed versions are in `replaced_methods.json`, which `python docs/_pages/replaced_methods.py`
writes in an environment with mmrotate. A verdict names a method of the user that differs.
"""

import importlib
import sys
from collections.abc import Iterator

from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmrotate.core.bbox import coder as coders
from mmrotate.models.detectors import RotatedTwoStageDetector
from mmrotate.models.roi_heads.roi_extractors import RotatedSingleRoIExtractor
from torch import nn

from mm2onnx_mmrotate.two_stage.heads import BOX_HEADS, ROI_HEADS, RPN_HEADS
from mmdeploy_ext.families.parts import followed
from mmdeploy_ext.families.replaced import Followed, Replaced, replaced_of_class

PARTS: Followed = (
    (RotatedTwoStageDetector, ('forward', 'forward_test', 'simple_test', 'extract_feat')),
    *((head, ('simple_test_rpn', 'get_bboxes', '_get_bboxes_single')) for head in RPN_HEADS),
    *((head, ('simple_test', 'simple_test_bboxes', '_bbox_forward')) for head in ROI_HEADS),
    *((head, ('get_bboxes', 'regress_by_class')) for head in BOX_HEADS),
    (RotatedSingleRoIExtractor, ('forward', 'map_roi_levels')),
    (SingleRoIExtractor, ('forward',)),
)
CODERS: Followed = (
    (coders.MidpointOffsetCoder, ('decode',)),
    (coders.DeltaXYWHAHBBoxCoder, ('decode',)),
    (coders.DeltaXYWHAOBBoxCoder, ('decode',)),
    (coders.GVFixCoder, ('decode',)),
    *followed.CODERS[:1],
)
POLYGONS = tuple(
    f'{function}_{version}'
    for function in ('poly2obb', 'hbb2obb', 'obb2xyxy')
    for version in ('oc', 'le135', 'le90')
)
FUNCTIONS: Followed = (
    *(
        (sys.modules[coder.__module__], ('delta2bbox',))
        for coder in (
            coders.MidpointOffsetCoder,
            coders.DeltaXYWHAHBBoxCoder,
            coders.DeltaXYWHAOBBoxCoder,
        )
    ),
    (
        importlib.import_module('mmrotate.core.bbox.transforms'),
        ('norm_angle', 'rbbox2result', 'rbbox2roi', 'poly2obb', 'hbb2obb', 'obb2xyxy', *POLYGONS),
    ),
    (
        importlib.import_module('mmrotate.core.post_processing.bbox_nms_rotated'),
        ('multiclass_nms_rotated',),
    ),
    (importlib.import_module('mmcv.ops.nms'), ('batched_nms', 'nms_rotated')),
)
FOLLOWED: Followed = (*PARTS, *CODERS, *FUNCTIONS)


def replaced(model: nn.Module) -> Iterator[Replaced]:
    """Yield an entry for each followed part of a detector, with the names of the methods that are followed.

    Parts are the detector, its heads, extractors and coders. Behind them comes an entry for each of
    `FUNCTIONS`, whatever the detector is.
    """
    for part in model.modules():
        yield from replaced_of_class(part, PARTS)
        for name in ('bbox_coder', 'fix_coder'):
            if hasattr(part, name):
                yield from replaced_of_class(getattr(part, name), CODERS)
    yield from (Replaced(module, module.__name__, names) for module, names in FUNCTIONS)
