"""Methods of mmrotate that the graphs of one-stage detectors compute by themselves.

Hashes of the followed versions are in `replaced_methods.json`, which `python docs/_pages/replaced_methods.py`
writes in an environment with mmrotate. A verdict names a method of the user that differs.
"""

import importlib
import sys
from collections.abc import Iterator

from mmrotate.core import bbox as boxes
from mmrotate.models import dense_heads as heads
from mmrotate.models import detectors
from mmrotate.models.detectors import utils
from mmrotate.models.utils import ORConv2d
from torch import nn

from mm2onnx_mmrotate.dense.kinds import KINDS
from mmdeploy_ext.families.replaced import Followed, Replaced, replaced_of_class

OF_DETECTORS = ('forward', 'forward_test', 'simple_test')
OF_HEADS = ('get_bboxes', '_get_bboxes_single', 'filter_bboxes', 'refine_bboxes', 'points2rotrect')
DETECTORS: Followed = tuple(
    (kind, OF_DETECTORS) for kind in (detectors.RotatedSingleStageDetector, detectors.R3Det, detectors.S2ANet)
)
HEADS: Followed = (
    *((kind.upstream, OF_HEADS) for kind in KINDS.values()),
    (heads.RotatedRetinaHead, OF_HEADS),
)
LAYERS: Followed = (
    (utils.AlignConv, ('forward', 'get_offset')),
    (utils.AlignConvModule, ('forward',)),
    (utils.FeatureRefineModule, ('forward',)),
    (ORConv2d, ('forward', 'rotate_arf')),
)
CODERS: Followed = (
    (boxes.coder.DeltaXYWHAOBBoxCoder, ('decode',)),
    (boxes.coder.DistanceAnglePointCoder, ('decode', 'distance2obb')),
    (boxes.coder.CSLCoder, ('decode',)),
)
FUNCTIONS: Followed = (
    (sys.modules[boxes.coder.DeltaXYWHAOBBoxCoder.__module__], ('delta2bbox',)),
    (
        importlib.import_module('mmrotate.core.bbox.transforms'),
        ('norm_angle', 'rbbox2result', 'poly2obb_oc', 'poly2obb_le90', 'poly2obb_le135'),
    ),
    (
        importlib.import_module('mmrotate.core.post_processing.bbox_nms_rotated'),
        ('multiclass_nms_rotated',),
    ),
    (importlib.import_module('mmcv.ops.nms'), ('nms_rotated',)),
    (importlib.import_module('mmcv.ops.rotated_feature_align'), ('rotated_feature_align',)),
)
FOLLOWED: Followed = (*DETECTORS, *HEADS, *LAYERS, *CODERS, *FUNCTIONS)


def replaced(model: nn.Module) -> Iterator[Replaced]:
    """Yield an entry for each followed part of a live detector, with the names of the methods in `FOLLOWED`.

    Parts are the detector, its heads, layers and coders; whether the user changed them does not matter.
    Behind them comes an entry for each of `FUNCTIONS`, whatever the detector is.
    """
    for part in model.modules():
        yield from replaced_of_class(part, (*DETECTORS, *HEADS, *LAYERS))
        for name in ('bbox_coder', 'angle_coder'):
            if hasattr(part, name):
                yield from replaced_of_class(getattr(part, name), CODERS)
    yield from (Replaced(module, module.__name__, names) for module, names in FUNCTIONS)
