"""What the graph of BEVFormer computes in place of methods of the live model, the user's or ours.

The graph runs linear layers, norms, feed-forward networks, backbone and neck of the model; what is around
them, attentions, geometry and the loop over layers, are functions of `families/parts`.

Source of the names: fundamentalvision/BEVFormer 66b65f3 (no code).
"""

from collections.abc import Iterator

from torch import nn

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.core.foreign_functions import is_foreign
from mmdeploy_ext.core.source_code import source_of_function
from mmdeploy_ext.families.building import nearest_base
from mmdeploy_ext.families.replaced import Followed, Replaced, replaced_parts
from mmdeploy_ext.models import query_boxes
from mmdeploy_ext.models.bevformer import attention, detector, head

FOLLOWED: Followed = (
    (detector.BEVFormer, ('extract_img_feat', 'forward', 'forward_test', 'run_frame')),
    (head.BEVFormerHead, ('forward', 'get_bboxes')),
    (query_boxes.QueryBoxCoder, ('boxes_of', 'decode_single', 'passing')),
    (attention.TemporalSelfAttention, ('forward',)),
    (attention.SpatialCrossAttention, ('forward',)),
    (attention.MSDeformableAttention3D, ('forward',)),
)
"""This package's classes, and methods of them that graph and runtime compute by other code."""
FORWARD = ('forward',)
ATTENTIONS = dict(
    TemporalSelfAttention=FORWARD,
    SpatialCrossAttention=FORWARD,
    MSDeformableAttention3D=FORWARD,
    CustomMSDeformableAttention=FORWARD,
)
"""Name of a class of upstream's attentions -> its methods that the graph computes by other code."""
UPSTREAM = dict(
    BEVFormer=(
        'extract_feat', 'extract_img_feat', 'forward', 'forward_test', 'simple_test', 'simple_test_pts',
    ),
    BEVFormerHead=('forward', 'get_bboxes'),
    NMSFreeCoder=('decode', 'decode_single'),
    PerceptionTransformer=('forward', 'get_bev_features'),
    BEVFormerEncoder=('forward', 'get_reference_points', 'point_sampling'),
    DetectionTransformerDecoder=FORWARD,
    BEVFormerLayer=FORWARD,
    GridMask=FORWARD,
    **ATTENTIONS,
)  # fmt: skip
"""The same of upstream's classes, by name."""
FUNCTIONS = dict(DetectionTransformerDecoder=('inverse_sigmoid',), NMSFreeCoder=('denormalize_bbox',))
"""Class of upstream -> functions that its module uses."""


LOOPED = ('PerceptionTransformer', 'BEVFormerEncoder', 'DetectionTransformerDecoder', 'BEVFormerLayer')
"""Parts that this package's head goes through by itself, so that it calls none of their methods."""


def is_ours(model: nn.Module) -> bool:
    """Return whether the head is this package's or derived from it."""
    return isinstance(model.pts_bbox_head, head.BEVFormerHead)


def replaced(model: nn.Module) -> Iterator[Replaced]:
    """Return, for each part of a live model, its methods that graph and runtime compute by other code."""
    bev_head = model.pts_bbox_head
    parts = {
        model: 'BEVFormer',
        bev_head: 'BEVFormerHead',
        bev_head.bbox_coder: 'NMSFreeCoder',
        **looped_parts(model),
    }
    if hasattr(model, 'grid_mask'):  # of upstream
        parts[model.grid_mask] = 'GridMask'
    for module in bev_head.transformer.modules():
        if name := nearest_base(type(module), ATTENTIONS):
            parts[module] = name
    return replaced_parts(parts, is_ours(model), FOLLOWED, UPSTREAM, FUNCTIONS)


def looped_parts(model: nn.Module) -> dict[nn.Module, str]:
    """Return the parts `LOOPED` of a live model, and the name of the class of upstream of each."""
    transformer = model.pts_bbox_head.transformer
    encoder, decoder = transformer.encoder, transformer.decoder
    parts = dict(zip((transformer, encoder, decoder), LOOPED, strict=False))
    return {**parts, **dict.fromkeys(encoder.layers, LOOPED[-1])}


def check_parts(filename: str, model: nn.Module) -> None:
    """Refuse parts of the user's in this package's head with methods that neither graph nor PyTorch calls.

    `filename` is that of the config, for the message. ConfigError: it names the method and its file.
    """
    if not is_ours(model):
        return
    for part, name in looped_parts(model).items():
        for method in UPSTREAM[name]:
            function = getattr(type(part), method, None)
            if hasattr(function, '__code__') and is_foreign(function):
                source = source_of_function(function)
                raise ConfigError(
                    f'{filename}: {function.__qualname__} ({source.file} lines {source.first}-{source.last}) '
                    f'is never called: BEVFormerHead of mm2onnx goes through the layers of encoder and '
                    f'decoder by itself; use a head of your own code, by custom_imports'
                )
