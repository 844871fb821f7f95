"""Methods and functions of mmdet that the graphs of several families compute; see `families/replaced.py`."""

import importlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from mmdet.core.bbox import transforms
from mmdet.core.post_processing import bbox_nms
from mmdet.core.utils import misc
from mmdet.models.roi_heads.mask_heads import fcn_mask_head

from mmdeploy_ext.compat.older_mmdet import mmdet_module
from mmdeploy_ext.families.replaced import Followed, Replaced, replaced_functions, replaced_of_class

anchors, coders = mmdet_module('mmdet.core.anchor'), mmdet_module('mmdet.core.bbox.coder')
DETECTOR_METHODS = ('forward', 'forward_test', 'simple_test')
"""Methods of detectors around their parts, in a test on one image."""
CODER_FUNCTIONS = {
    coders.DeltaXYWHBBoxCoder: ('delta2bbox',),
    coders.LegacyDeltaXYWHBBoxCoder: ('legacy_delta2bbox',),
    coders.TBLRBBoxCoder: ('tblr2bboxes',),
    coders.DistancePointBBoxCoder: ('distance2bbox',),
    coders.BucketingBBoxCoder: ('bucket2bbox',),
}
"""Box coder of mmdet -> the function of its module that it decodes by."""
GENERATORS: Followed = (
    (anchors.AnchorGenerator, ('grid_priors',)),
    (anchors.MlvlPointGenerator, ('grid_priors',)),
)
"""Methods that make the priors of all levels; graphs call `single_level_grid_priors` of a generator."""
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
BEFORE: Followed = (
    (anchors.AnchorGenerator, ('grid_anchors', 'single_level_grid_anchors', 'single_level_grid_priors')),
    (anchors.MlvlPointGenerator, ('single_level_grid_priors',)),
    (transforms, ('distance2bbox',)),
)
"""Methods and functions that an mmdet before 2.18 has in place of some of the above."""
MASK_FUNCTIONS: Followed = (
    (importlib.import_module('mmcv.ops.point_sample'), ('point_sample', 'rel_roi_point_to_rel_img_point')),
    (fcn_mask_head, ('_do_paste_mask',)),
)
"""Functions that read maps at points of regions, and paste masks into pictures."""


def replaced_in(detector: Any, heads: Iterable[str], followed: Followed) -> Iterator[Replaced]:
    """Yield what the graphs of an image detector compute by themselves, as `Family.replaced` does.

    That is methods of the detector, of the parts of its heads, of their generators of priors and box coders,
    and functions; those of box coders are by `CODERS`, also if `followed` lacks it. An entry has the live
    part, of functions the module, and as text the name of the class or module of upstream.

    Args:
        detector: the live detector.
        heads: names of the attributes that are its heads; heads that it does not have are left out.
        followed: the classes and functions that the graphs of its family compute.
    """
    yield from replaced_of_class(detector, followed)
    live_heads = [getattr(detector, head, None) for head in heads]
    parts = [part for head in live_heads if head is not None for part in head.modules()]
    for part in parts:
        yield from replaced_of_class(part, followed)
        for value in vars(part).values():
            yield from replaced_generators(value, followed)
    yield from replaced_coders(parts)
    yield from replaced_functions(entry for entry in followed if entry not in CODERS)


def replaced_generators(value: Any, followed: Followed) -> Iterator[Replaced]:
    """Yield the followed methods of an attribute of a part if it is a generator of priors.

    Methods that the generators of an older mmdet lack are left out.
    """
    if isinstance(value, tuple(kind for kind, _ in GENERATORS)):
        for entry in replaced_of_class(value, followed):
            present = tuple(name for name in entry.methods if hasattr(value, name))
            yield Replaced(value, entry.upstream, present)


def replaced_coders(parts: Iterable[Any]) -> Iterator[Replaced]:
    """Yield the decoding methods and functions of the box coders of live parts."""
    for part in parts:
        coder = getattr(part, 'bbox_coder', None)
        if coder is None:
            continue
        yield from replaced_of_class(coder, CODERS)
        for coder_class, names in CODER_FUNCTIONS.items():
            for base in type(coder).__mro__:
                if base.__name__ == coder_class.__name__:
                    yield Replaced(sys.modules[base.__module__], coder_class.__module__, names)
