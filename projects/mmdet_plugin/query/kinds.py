"""Which detectors of queries the graphs repeat: parts of mmdet 2.28.2 and mmcv, each with its own methods.

A class that is derived from one of these and keeps the methods is taken, too; any other part is refused by
its name, and so is one that overrides a method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmcv.cnn.bricks import transformer as bricks
from mmcv.ops import multi_scale_deform_attn as deformable
from mmdet.models import dense_heads as heads
from mmdet.models import detectors
from mmdet.models.utils import positional_encoding, transformer

from mmdeploy_ext.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

DETECTORS = (detectors.DETR, detectors.DeformableDETR)
HEADS = (heads.DETRHead, heads.DeformableDETRHead)
TRANSFORMERS = dict(
    DETRHead=transformer.Transformer, DeformableDETRHead=transformer.DeformableDetrTransformer
)
PARTS = (
    transformer.DetrTransformerEncoder,
    transformer.DetrTransformerDecoder,
    transformer.DeformableDetrTransformerDecoder,
    transformer.DetrTransformerDecoderLayer,
    bricks.BaseTransformerLayer,
    bricks.MultiheadAttention,
    deformable.MultiScaleDeformableAttention,
    bricks.FFN,
    positional_encoding.SinePositionalEncoding,
)
"""What a transformer and its head are made of."""
METHODS = (
    *('simple_test', 'simple_test_bboxes', 'forward', 'forward_single', 'get_bboxes', '_get_bboxes_single'),
    *('gen_encoder_output_proposals', 'get_proposal_pos_embed', 'get_reference_points', 'get_valid_ratio'),
)
"""Methods of upstream that the graphs repeat."""


def kind_of(head: nn.Module) -> str:
    """Return the name of mmdet's class that a head is of.

    Raises:
        ConfigError: it is of none.
    """
    names = [one.__name__ for one in type(head).__mro__]
    known = [name for name in names if name in TRANSFORMERS]
    if not known:
        raise ConfigError(f'{type(head).__name__}: no head of queries that is exported')
    return known[0]


def samples_points(head: nn.Module) -> bool:
    """Return whether a head looks at points of maps, which is GridSample."""
    return any(isinstance(one, deformable.MultiScaleDeformableAttention) for one in head.modules())


def check_detector(detector: type) -> None:
    """Refuse a class of detectors that does more than run its head.

    Raises:
        ConfigError: names the class, or the method.
    """
    _same(detector, DETECTORS, 'detector')


def check_head(head: nn.Module) -> None:
    """Refuse a head, or a part of it, that the graphs do not repeat.

    Raises:
        ConfigError: names the part, or the method.
    """
    _same(type(head), HEADS, 'head of queries')
    own, wanted = head.transformer, TRANSFORMERS[kind_of(head)]
    _same(type(own), (wanted,), 'transformer')
    decoder = own.decoder
    parts = [head.positional_encoding, own.encoder, decoder]
    parts += [layer for stack in (own.encoder, decoder) for layer in stack.layers]
    parts += [one for layer in parts[3:] for one in (*layer.attentions, *layer.ffns)]
    for part in parts:
        _same(type(part), PARTS, 'part of a transformer')
    _check_attentions(head)
    if getattr(own, 'as_two_stage', False) != getattr(head, 'as_two_stage', False):
        raise ConfigError(
            f'{type(head).__name__}: as_two_stage={head.as_two_stage}, and its transformer has another; '
            f'expected the same'
        )


def _check_attentions(head: nn.Module) -> None:
    """Refuse attention in a place where the graphs have another one.

    Raises:
        ConfigError: names the place and both attentions.
    """
    plain, points = bricks.MultiheadAttention, deformable.MultiScaleDeformableAttention
    looks = plain if kind_of(head) == 'DETRHead' else points
    for stack, kinds in (
        ('encoder', dict(self_attn=looks)),
        ('decoder', dict(self_attn=plain, cross_attn=looks)),
    ):
        for layer in getattr(head.transformer, stack).layers:
            for attention in layer.attentions:
                wanted = kinds.get(attention.operation_name, plain)
                if not isinstance(attention, wanted):
                    raise ConfigError(
                        f'{stack}: {attention.operation_name} is {type(attention).__name__}; expected '
                        f'{wanted.__name__}'
                    )


def _same(found: type, known: tuple[type, ...], what: str) -> None:
    """Refuse a class that is of none of those known, or has a method of its own."""
    kinds = [one for one in found.__mro__ if one in known]
    if not kinds:
        names = ', '.join(one.__name__ for one in known)
        raise ConfigError(f'{found.__name__}: no {what} that is exported; expected {names}')
    for name in METHODS:
        if getattr(found, name, None) is not getattr(kinds[0], name, None):
            raise ConfigError(
                f'{found.__name__} has a {name}() of its own, which the graphs do not repeat; expected that '
                f'of {kinds[0].__name__}'
            )
