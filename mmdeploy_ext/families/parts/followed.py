"""Methods and functions of mmdet that graphs of several families compute by themselves; see `Replaced`."""

import importlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mmdet.core.bbox import coder as coders
from mmdet.core.bbox import transforms
from mmdet.core.post_processing import bbox_nms
from mmdet.core.utils import misc
from mmdet.models import detectors

from mmdeploy_ext.families.replaced import Followed, Replaced

DETECTOR_METHODS = ('forward', 'forward_test', 'simple_test')
"""Methods that stand around the parts of a detector where it is tested on one image."""
SINGLE_STAGE: Followed = ((detectors.SingleStageDetector, DETECTOR_METHODS),)
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
FUNCTIONS: Followed = (
    (importlib.import_module('mmcv.ops.nms'), ('batched_nms',)),
    (bbox_nms, ('multiclass_nms',)),
    (misc, ('select_single_mlvl', 'filter_scores_and_topk')),
    (transforms, ('bbox2result',)),
)


def replaced_of_class(part: Any, followed: Followed) -> Iterator[Replaced]:
    """Yield the methods of a live part, by the first of the followed classes that it is derived from.

    A class of the same name counts, too: that of a copy of the library in the user's repository.
    """
    names = [base.__name__ for base in type(part).__mro__]
    for kind, methods in followed:
        if kind.__name__ in names:
            yield Replaced(part, kind.__name__, methods)
            return


def replaced_coders(parts: Iterable[Any]) -> Iterator[Replaced]:
    """Yield how the box coders of live parts decode."""
    for part in parts:
        coder = getattr(part, 'bbox_coder', None)
        if coder is None:
            continue
        yield from replaced_of_class(coder, CODERS)
        for kind, names in CODER_FUNCTIONS.items():
            if type(coder).__name__ == kind.__name__:
                yield Replaced(sys.modules[type(coder).__module__], kind.__module__, names)


def replaced_functions() -> Iterator[Replaced]:
    """Yield the functions that choose and suppress boxes."""
    for module, names in FUNCTIONS:
        yield Replaced(module, module.__name__, names)


def methods_of(classes: Sequence[type], methods: tuple[str, ...]) -> Followed:
    """Return the same methods of several classes, those that are derived from others of them first."""
    return tuple((kind, methods) for kind in sorted(classes, key=lambda kind: -len(kind.__mro__)))
