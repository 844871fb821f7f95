"""The supported parts of MaskFormer and Mask2Former, of mmdet 2.28.2 and mmcv."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmcv.cnn.bricks import transformer as bricks
from mmcv.ops import multi_scale_deform_attn as deformable
from torch import nn

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.common import detector_parts
from mmdeploy_ext.upstream.compat.patches_vendored import mmdet_module

heads, detectors = mmdet_module('mmdet.models.dense_heads'), mmdet_module('mmdet.models.detectors')
seg_heads, plugins = mmdet_module('mmdet.models.seg_heads'), mmdet_module('mmdet.models.plugins')
transformer = mmdet_module('mmdet.models.utils.transformer')
positional_encoding = mmdet_module('mmdet.models.utils.positional_encoding')

MASKFORMER = detectors.MaskFormer
MASK_DETECTORS = (detectors.Mask2Former, detectors.MaskFormer)
MASK_HEADS = {
    heads.Mask2FormerHead: (plugins.MSDeformAttnPixelDecoder,),
    heads.MaskFormerHead: (plugins.PixelDecoder, plugins.TransformerEncoderPixelDecoder),
}
PARTS = (
    transformer.DetrTransformerEncoder,
    transformer.DetrTransformerDecoder,
    transformer.DetrTransformerDecoderLayer,
    bricks.BaseTransformerLayer,
    bricks.MultiheadAttention,
    deformable.MultiScaleDeformableAttention,
    positional_encoding.SinePositionalEncoding,
)
UNTRACED = (
    '.extract_feat', '*head.forward', 'forward_single', 'forward_head', 'instance_postprocess',
    'panoptic_postprocess', '*pixel_decoder.forward', '*transformer.forward',
    '*transformer.?ncoder.forward', '*transformer.?ecoder.forward', '*layers.?.forward',
    '*attentions.?.forward', '*positional_encoding.forward',
)  # fmt: skip


def check_class(kind: type, exported: tuple[type, ...], role: str) -> None:
    if not issubclass(kind, exported):
        names = ', '.join(upstream.__name__ for upstream in exported)
        raise ConfigError(f'{kind.__name__}: this {role} is not supported; expected {names}')


def check_mask_heads(head: nn.Module, fusion: nn.Module) -> None:
    check_class(type(head), tuple(MASK_HEADS), 'head of masks')
    check_class(type(fusion), (seg_heads.MaskFormerFusionHead,), 'head that fuses masks')
    pixels, decoder = head.pixel_decoder, head.transformer_decoder
    decoders = next(kinds for upstream, kinds in MASK_HEADS.items() if isinstance(head, upstream))
    check_class(type(pixels), decoders, 'pixel decoder')
    encoder = getattr(pixels, 'encoder', None)
    if attends_inside_masks(head):
        encodings = pixels.postional_encoding, head.decoder_positional_encoding
    else:
        encodings = (head.decoder_pe, pixels.positional_encoding) if encoder else (head.decoder_pe,)
    stacks = dict(decoder=decoder) if encoder is None else dict(encoder=encoder, decoder=decoder)
    _check_parts((*encodings, *stacks.values()), tuple(stacks.values()))
    _check_attentions(stacks, points_in=('encoder',) if attends_inside_masks(head) else ())


def attends_inside_masks(head: nn.Module) -> bool:
    return isinstance(head, heads.Mask2FormerHead)


def fuses(cfg: Any) -> bool:
    return bool(detector_parts.test_cfg_of(cfg).get('panoptic_on', True))


def check_instances(fusion: nn.Module) -> None:
    if not fusion.test_cfg.get('instance_on', False):
        raise ConfigError('model.test_cfg.instance_on and panoptic_on are both False; set one to True')


def check_panoptic(head: nn.Module, fusion: nn.Module) -> None:
    counts = [(int(part.num_things_classes), int(part.num_stuff_classes)) for part in (head, fusion)]
    if counts[0] != counts[1]:
        raise ConfigError(
            f'model.panoptic_head has {counts[0][0]} things and {counts[0][1]} stuff classes, '
            f'panoptic_fusion_head {counts[1][0]} and {counts[1][1]}; expected the same'
        )


def _check_parts(parts: Sequence[nn.Module], stacks: Sequence[nn.Module]) -> None:
    layers = [layer for stack in stacks for layer in stack.layers]
    attentions = [attention for layer in layers for attention in layer.attentions]
    for part in (*parts, *layers, *attentions):
        check_class(type(part), PARTS, 'part of a transformer')


def _check_attentions(stacks: Mapping[str, nn.Module], points_in: Sequence[str]) -> None:
    plain, points = bricks.MultiheadAttention, deformable.MultiScaleDeformableAttention
    for stack, part in stacks.items():
        looks = points if stack in points_in else plain
        kinds = dict(self_attn=looks) if stack == 'encoder' else dict(self_attn=plain, cross_attn=looks)
        for layer in part.layers:
            for attention in layer.attentions:
                name = attention.operation_name
                expected = kinds.get(name, plain)
                if not isinstance(attention, expected):
                    raise ConfigError(
                        f'{stack}: {name} is {type(attention).__name__}; expected {expected.__name__}'
                    )
