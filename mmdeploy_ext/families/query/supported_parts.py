"""The supported parts of detectors of queries, of mmdet 2.28.2 and mmcv."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmcv.cnn.bricks import transformer as bricks
from mmcv.ops import multi_scale_deform_attn as deformable
from torch import nn

from mmdeploy_ext.base.config import cfg_options
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.base.source_code import nearest_base
from mmdeploy_ext.families.common import detector_parts
from mmdeploy_ext.families.common.dense_heads import chosen_coder
from mmdeploy_ext.families.common.regions import check_extractor, part_of, stages_of
from mmdeploy_ext.upstream.compat.patches_vendored import mmdet_module
from mmdeploy_ext.upstream.models import conditional_detr, ddq, dino

heads, detectors = mmdet_module('mmdet.models.dense_heads'), mmdet_module('mmdet.models.detectors')
roi_heads = mmdet_module('mmdet.models.roi_heads')
bbox_heads = mmdet_module('mmdet.models.roi_heads.bbox_heads')
mask_heads = mmdet_module('mmdet.models.roi_heads.mask_heads')
seg_heads, plugins = mmdet_module('mmdet.models.seg_heads'), mmdet_module('mmdet.models.plugins')
transformer = mmdet_module('mmdet.models.utils.transformer')
positional_encoding = mmdet_module('mmdet.models.utils.positional_encoding')

DETECTORS = (dino.DINO, detectors.DETR, detectors.DeformableDETR)
MASKFORMER = detectors.MaskFormer
MASK_DETECTORS = (detectors.Mask2Former, detectors.MaskFormer)
MASK_HEADS = {
    heads.Mask2FormerHead: (plugins.MSDeformAttnPixelDecoder,),
    heads.MaskFormerHead: (plugins.PixelDecoder, plugins.TransformerEncoderPixelDecoder),
}
REGION_DETECTORS = (detectors.QueryInst, detectors.SparseRCNN)
REGION_PARTS = dict(
    rpn_head=heads.EmbeddingRPNHead,
    roi_head=roi_heads.SparseRoIHead,
    bbox_head=bbox_heads.DIIHead,
    mask_head=mask_heads.DynamicMaskHead,
)
QUERY_ROI_HEAD = 'QueryRoIHead'
"""QueryInst's own name of mmdet's `SparseRoIHead`."""
HEADS = (heads.DETRHead, heads.DeformableDETRHead, dino.DINOHead)
TRANSFORMERS = dict(
    ConditionalDETRHead=conditional_detr.ConditionalDetrTransformer,
    DDQDETRHead=ddq.DDQTransformer,
    DABDETRHead=conditional_detr.ConditionalDetrTransformer,
    DETRHead=transformer.Transformer,
    DeformableDETRHead=transformer.DeformableDetrTransformer,
    DINOHead=dino.DinoTransformer,
    HybridBranchDeformableDETRHead=transformer.DeformableDetrTransformer,
)
CO_DETR, CO_DINO_HEAD = 'CoDETR', 'CoDINOHead'
CO_DETR_PARTS = ('CoDinoTransformer', 'DinoTransformerDecoder')
"""Parts of a `CoDINOHead`'s transformer that mmdet lacks."""
CO_DETR_MASKS = ('mask_head', 'mask_iou_head')
PARTS = (
    transformer.DetrTransformerEncoder,
    transformer.DetrTransformerDecoder,
    transformer.DeformableDetrTransformerDecoder,
    dino.DinoTransformerDecoder,
    transformer.DetrTransformerDecoderLayer,
    bricks.BaseTransformerLayer,
    bricks.MultiheadAttention,
    deformable.MultiScaleDeformableAttention,
    positional_encoding.SinePositionalEncoding,
)


UNTRACED = (
    '.extract_feat', 'simple_test_query_head', '*head.forward', 'forward_single', 'forward_head',
    'instance_postprocess', 'panoptic_postprocess', '_decode_init_proposals', '_bbox_forward',
    '_mask_forward', 'refine_bboxes', 'regress_by_class', 'get_seg_masks', 'gen_encoder_output_proposals',
    'get_proposal_pos_embed', 'get_reference_points', 'get_valid_ratio', 'gen_sineembed_for_position',
    'roi_rescale', 'map_roi_levels', '*pixel_decoder.forward', '*transformer.forward',
    '*transformer.?ncoder.forward', '*transformer.?ecoder.forward', '*layers.?.forward',
    '*attentions.?.forward', '*positional_encoding.forward', '*roi_extractor*.forward',
)  # fmt: skip


def kind_of(head: nn.Module) -> str:
    name = nearest_base(type(head), (*TRANSFORMERS, CO_DINO_HEAD))
    if name is None:
        raise ConfigError(f'{type(head).__name__}: this query head is not supported')
    return name


def is_co_detr(detector: type | None) -> bool:
    return CO_DETR in [kind.__name__ for kind in getattr(detector, '__mro__', ())]


def has_name(part: nn.Module, names: Sequence[str]) -> bool:
    return nearest_base(type(part), names) is not None


def head_key(cfg: Any) -> str:
    return 'query_head' if is_co_detr(detector_parts.detector_of(cfg)) else 'bbox_head'


def check_co_detr(model: Mapping[str, Any], test_cfg: Any) -> None:
    kind = (model.get('query_head') or {}).get('type')
    if kind != CO_DINO_HEAD:
        raise ConfigError(
            f'model.query_head.type={kind!r}: only {CO_DINO_HEAD} of Co-DETR is supported; use a '
            'co_dino config'
        )
    if (module := model.get('eval_module', 'detr')) != 'detr':
        raise ConfigError(
            f"model.eval_module={module!r}: Co-DETR's auxiliary heads are not supported; expected 'detr', "
            f'the results of query_head: {cfg_options({"model.eval_module": "detr"})}'
        )
    for key in CO_DETR_MASKS:
        if model.get(key):
            raise ConfigError(
                f'model.{key}: masks of Co-DETR are not supported; expected a config with boxes only'
            )
    if not isinstance(test_cfg, list | tuple) or not (test_cfg and isinstance(test_cfg[0], Mapping)):
        raise ConfigError(
            f'model.test_cfg={test_cfg!r:.80}: expected a list of dicts, the first for query_head'
        )


def samples_points(head: nn.Module) -> bool:
    return any(isinstance(part, deformable.MultiScaleDeformableAttention) for part in head.modules())


def check_class(kind: type, exported: tuple[type, ...], role: str) -> None:
    if not issubclass(kind, exported):
        names = ', '.join(upstream.__name__ for upstream in exported)
        raise ConfigError(f'{kind.__name__}: this {role} is not supported; expected {names}')


def check_head(head: nn.Module) -> None:
    if not has_name(head, (CO_DINO_HEAD,)):
        check_class(type(head), HEADS, 'head of queries')
    transformer, kind = head.transformer, kind_of(head)
    if kind != CO_DINO_HEAD:
        check_class(type(transformer), (TRANSFORMERS[kind],), 'transformer')
    elif not has_name(transformer, CO_DETR_PARTS):
        raise ConfigError(
            f'{type(transformer).__name__}: this transformer of {CO_DINO_HEAD} is not supported; expected '
            f'{CO_DETR_PARTS[0]}'
        )
    if isinstance(transformer, conditional_detr.ConditionalDetrTransformer):
        return  # its layers are ours
    _check_parts(
        (head.positional_encoding, transformer.encoder, transformer.decoder),
        (transformer.encoder, transformer.decoder),
    )
    points_in = () if kind == 'DETRHead' else ('encoder', 'decoder')
    _check_attentions(dict(encoder=transformer.encoder, decoder=transformer.decoder), points_in)


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


def check_region_heads(parts: Mapping[str, nn.Module]) -> None:
    for name, part in parts.items():
        if not has_name(part, (QUERY_ROI_HEAD,)):
            check_class(type(part), (REGION_PARTS[name],), name)
    roi_head = parts['roi_head']
    kinds = ('bbox', 'mask') if roi_head.with_mask else ('bbox',)
    for stage in range(stages_of(roi_head)):
        for kind in kinds:
            check_extractor(part_of(roi_head, f'{kind}_roi_extractor', stage))
            head = part_of(roi_head, f'{kind}_head', stage)
            check_class(type(head), (REGION_PARTS[f'{kind}_head'],), f'{kind}_head')
        chosen_coder(part_of(roi_head, 'bbox_head', stage), 'model.roi_head.bbox_head')
    if roi_head.with_shared_head:
        raise ConfigError('model.roi_head.shared_headis not supported for queries with regions; remove it')


def _check_parts(parts: Sequence[nn.Module], stacks: Sequence[nn.Module]) -> None:
    layers = [layer for stack in stacks for layer in stack.layers]
    attentions = [attention for layer in layers for attention in layer.attentions]
    for part in (*parts, *layers, *attentions):
        if not has_name(part, CO_DETR_PARTS):
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
