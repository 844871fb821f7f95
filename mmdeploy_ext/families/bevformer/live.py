"""What the graph of BEVFormer computes in place of methods of the live model, the user's or ours.

The graph runs linear layers, norms, feed-forward networks, backbone and neck of the model; what is around
them, attentions, geometry and the loop over layers, are functions of `families/parts`.

Source of the names: fundamentalvision/BEVFormer 66b65f3 (no code).
"""

import sys
from collections.abc import Iterator

from torch import nn

from mmdeploy_ext.families.replaced import Followed, Replaced, replaced_of_class
from mmdeploy_ext.models import query_boxes
from mmdeploy_ext.models.bevformer import attention, detector, head

FOLLOWED: Followed = (
    (detector.BEVFormer, ('extract_img_feat', 'forward', 'forward_test', 'run_frame')),
    (head.BEVFormerHead, ('forward', 'get_bboxes')),
    (query_boxes.QueryBoxCoder, ('decode_single',)),
    (attention.TemporalSelfAttention, ('forward',)),
    (attention.SpatialCrossAttention, ('forward',)),
    (attention.MSDeformableAttention3D, ('forward',)),
)
"""This package's classes, and methods of them that graph and runtime compute by other code."""
DETECTOR = ('extract_feat', 'extract_img_feat', 'forward', 'forward_test', 'simple_test', 'simple_test_pts')
HEAD = ('forward', 'get_bboxes')
TRANSFORMER = ('forward', 'get_bev_features')
ENCODER = ('forward', 'get_reference_points', 'point_sampling')
CODER = ('decode', 'decode_single')
FORWARD = ('forward',)
"""Methods of upstream's classes that graph and runtime compute by other code."""
ATTENTIONS = (
    'TemporalSelfAttention',
    'SpatialCrossAttention',
    'MSDeformableAttention3D',
    'CustomMSDeformableAttention',
)
"""Upstream's attentions."""
FUNCTIONS = dict(decoder=('inverse_sigmoid',), coder=('denormalize_bbox',))
"""Part -> functions that its module uses."""


def is_ours(model: nn.Module) -> bool:
    """Return whether the head is this package's or derived from it."""
    return isinstance(model.pts_bbox_head, head.BEVFormerHead)


def replaced(model: nn.Module) -> Iterator[Replaced]:
    """Yield the methods and functions of a live model that graph and runtime compute by other code."""
    bev_head = model.pts_bbox_head
    transformer = bev_head.transformer
    if is_ours(model):
        for part in (model, bev_head, bev_head.bbox_coder, *transformer.modules()):
            yield from replaced_of_class(part, FOLLOWED)
        return
    yield Replaced(model, 'BEVFormer', DETECTOR)
    yield Replaced(bev_head, 'BEVFormerHead', HEAD)
    yield Replaced(bev_head.bbox_coder, 'NMSFreeCoder', CODER)
    yield Replaced(transformer, 'PerceptionTransformer', TRANSFORMER)
    yield Replaced(transformer.encoder, 'BEVFormerEncoder', ENCODER)
    yield Replaced(transformer.decoder, 'DetectionTransformerDecoder', FORWARD)
    for layer in transformer.encoder.layers:
        yield Replaced(layer, 'BEVFormerLayer', FORWARD)
    for module in transformer.modules():
        names = [base.__name__ for base in type(module).__mro__]
        upstream = next((name for name in ATTENTIONS if name in names), None)
        if upstream is not None:
            yield Replaced(module, upstream, FORWARD)
    for part, key in ((transformer.decoder, 'decoder'), (bev_head.bbox_coder, 'coder')):
        yield Replaced(sys.modules[type(part).__module__], f'functions of the {key}', FUNCTIONS[key])
