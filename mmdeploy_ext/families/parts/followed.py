"""Methods and functions of mmdet that the graphs of several families compute; see `families/replaced.py`."""

import importlib
import sys
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

from mmdet.core.bbox import transforms
from mmdet.core.post_processing import bbox_nms
from mmdet.core.utils import misc

from mmdeploy_ext.compat.older_mmdet import mmdet_module
from mmdeploy_ext.families.replaced import Followed, Replaced, replaced_of_class

coders, detectors = mmdet_module('mmdet.core.bbox.coder'), mmdet_module('mmdet.models.detectors')
DETECTOR_METHODS = ('forward', 'forward_test', 'simple_test')
"""Methods of detectors around their parts, in a test on one image."""
SINGLE_STAGE: Followed = ((detectors.SingleStageDetector, DETECTOR_METHODS),)
"""The methods of one-stage detectors."""
CODER_FUNCTIONS = {
    coders.DeltaXYWHBBoxCoder: ('delta2bbox',),
    coders.LegacyDeltaXYWHBBoxCoder: ('legacy_delta2bbox',),
    coders.TBLRBBoxCoder: ('tblr2bboxes',),
    coders.DistancePointBBoxCoder: ('distance2bbox',),
    coders.BucketingBBoxCoder: ('bucket2bbox',),
}
"""Box coder of mmdet -> the function of its module that it decodes by."""
CODERS: Followed = (
    *((coder, ('decode',)) for coder in (*CODER_FUNCTIONS, coders.YOLOBBoxCoder)),
    *((sys.modules[coder.__module__], names) for coder, names in CODER_FUNCTIONS.items()),
)
"""Methods and functions that decode boxes."""
FUNCTIONS: Followed = (
    (importlib.import_module('mmcv.ops.nms'), ('batched_nms',)),
    (bbox_nms, ('multiclass_nms',)),
    (misc, ('select_single_mlvl', 'filter_scores_and_topk')),
    (transforms, ('bbox2result',)),
)
"""Functions that choose boxes, and make results of them."""


def replaced_in(heads: Iterable[Any], followed: Followed) -> Iterator[Replaced]:
    """Yield the methods of live heads, their parts and box coders, and the functions that choose boxes.

    `followed` are the classes and functions that the graphs of a family compute.
    """
    parts = [part for head in heads if head is not None for part in head.modules()]
    for part in parts:
        yield from replaced_of_class(part, followed)
    yield from replaced_coders(parts)
    yield from replaced_functions(followed)


def replaced_coders(parts: Iterable[Any]) -> Iterator[Replaced]:
    """Yield the decoding methods and functions of the box coders of live parts."""
    for part in parts:
        coder = getattr(part, 'bbox_coder', None)
        if coder is None:
            continue
        yield from replaced_of_class(coder, CODERS)
        for coder_class, names in CODER_FUNCTIONS.items():
            if type(coder).__name__ == coder_class.__name__:
                yield Replaced(sys.modules[type(coder).__module__], coder_class.__module__, names)


def replaced_functions(followed: Followed) -> Iterator[Replaced]:
    """Yield those entries of `followed` that are functions of modules, without those of box coders."""
    for module, names in followed:
        if isinstance(module, ModuleType) and (module, names) not in CODERS:
            yield Replaced(module, module.__name__, names)
