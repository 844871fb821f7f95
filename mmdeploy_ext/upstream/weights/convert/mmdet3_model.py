"""Converts the model of a config of mmdet 3 to mmdet 2.28.

420 of 680 models of mmdet 3.3.0's configs equal mmdet 2.28.2's letter by letter. Source: the configs of both,
compared key by key, and the transformers of both.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from mmdeploy_ext.base.errors import ConfigError

OWN_MODELS = 'mmdeploy_ext.upstream.models.mmdet'
"""Module that registers the detectors of this project."""
INNER = (
    'ByteTrack', 'DeepSORT', 'MaskTrackRCNN', 'OCSORT', 'QDTrack', 'SORT', 'SoftTeacher', 'StrongSORT',
)  # fmt: skip
"""Trackers, and a semi-supervised model, with an entry `detector`."""
OWN_TYPES = {
    'BoxInst', 'CenterNetUpdateHead', 'CondInst', 'ConditionalDETR', 'ConvNeXt', 'CrossEntropyCustomLoss',
    'DABDETR', 'DDQDETR', 'DINO', 'MultiInstanceBBoxHead', 'NormedFCOSHead', 'RTMDet', 'RTMDetIns',
}  # fmt: skip
"""Types of `OWN_MODELS` in configs of mmdet 3."""
SCOPES = ('mmdet.', 'mmdet3d.', 'mmpretrain.')
WEIGHT_INIT = 'mmengine.model.weight_init'
TORCH_NAMES = dict(BatchNorm2d='BN', SyncBatchNorm='SyncBN', GroupNorm='GN', LayerNorm='LN')
"""Class of torch.nn -> its name in a registry of mmcv, if it is another."""
SELF_ATTENTION, CROSS_ATTENTION, FFN = ('self_attn', 'norm'), ('cross_attn', 'norm'), ('ffn', 'norm')
"""Operations in mmdet 2's `operation_order`."""
MULTIHEAD, DEFORMABLE = 'MultiheadAttention', 'MultiScaleDeformableAttention'
MULTIHEAD_DEFAULTS = dict(embed_dims=256, num_heads=8, dropout=0.0)
FFN_DEFAULTS = dict(embed_dims=256, feedforward_channels=1024, num_fcs=2, ffn_drop=0.0)
FFN_DEFAULTS['act_cfg'] = dict(type='ReLU', inplace=True)
LAYER_KEYS = {'self_attn_cfg', 'cross_attn_cfg', 'ffn_cfg', 'norm_cfg', 'init_cfg'}
STACK_KEYS = {'num_layers', 'layer_cfg', 'init_cfg', 'return_intermediate', 'post_norm_cfg'}


def parts(config: Any) -> Iterator[dict[str, Any]]:
    """Yield the dicts with a textual `type`, outer parts first."""
    if isinstance(config, dict):
        if isinstance(config.get('type'), str):
            yield config
        for inner in config.values():
            yield from parts(inner)
    elif isinstance(config, list | tuple):
        for inner in config:
            yield from parts(inner)


def without_scope(config: Any) -> Any:
    """Copy a part of a config without the scope `mmdet.` or the modules of a pure-Python config's types."""
    config = copy.deepcopy(config)
    for part in parts(config):
        part.pop('_scope_', None)
        part['type'] = _registered_name(part['type'])
    return config


def _registered_name(name: str) -> str:
    if name.count('.') < 2:
        return name.rpartition('.')[2] if name.startswith(SCOPES) else name
    module, _, name = name.rpartition('.')
    if module == WEIGHT_INIT:
        return name.removesuffix('Init')
    return TORCH_NAMES.get(name, name) if module.startswith('torch.nn') else name


def to_mmdet2_model(config: dict[str, Any]) -> dict[str, Any]:
    """Model of a config of mmdet 3 for mmdet 2.28, without `data_preprocessor` and `train_cfg`.

    ConfigError: a key or value that mmdet 2.28 lacks. KeyError: a part of the detector is missing.
    """
    model = without_scope(config)
    model.pop('data_preprocessor', None)
    model.pop('train_cfg', None)
    for part in parts(model):
        part.pop('force_grad_on_level', None)  # only a training reads it
        if part['type'] == 'FocalCustomLoss':
            part['type'] = 'FocalLoss'
            part.pop('num_classes')
    if convert := CONVERTERS.get(model.get('type')):
        convert(model)
    semantic = (model.get('roi_head') or {}).get('semantic_head')
    if isinstance(semantic, dict):
        semantic.pop('seg_scale_factor', None)  # only a loss reads it
    return model


# ---------------------------------------------------------------- detectors; each converts `model` in place,
# the entry `model` of a config without scopes, and raises the errors of `to_mmdet2_model`


CENTERNET_TRAINING = {
    'hm_min_radius', 'hm_min_overlap', 'more_pos_thresh', 'more_pos_topk', 'soft_weight_on_reg',
    'regress_ranges', 'loss_cls', 'loss_bbox',
}  # fmt: skip
"""Keys of a CenterNetUpdateHead that only a training reads."""


def convert_centernet(model: dict[str, Any]) -> None:
    """Rename channels of head and neck in place, or leave out what trains a CenterNetUpdateHead."""
    head, neck = model['bbox_head'], model['neck']
    if head['type'] == 'CenterNetUpdateHead':
        model['type'] = 'SingleStageDetector'
        model['bbox_head'] = {key: head[key] for key in head.keys() - CENTERNET_TRAINING}
        return
    head['in_channel'], head['feat_channel'] = head.pop('in_channels'), head.pop('feat_channels')
    neck['in_channel'] = neck.pop('in_channels')


def convert_fcos(model: dict[str, Any]) -> None:
    """Name the head with V3Det's classifier, in place."""
    head = model['bbox_head']
    if predictor := head.get('cls_predictor_cfg'):
        head['type'] = 'NormedFCOSHead'
        predictor.pop('type')


def convert_crowddet(model: dict[str, Any]) -> None:
    """Name detector and head of regions as in mmdet 2.28, in place, with mmcv's RoIAlign."""
    model['type'], roi_head = 'FasterRCNN', model['roi_head']
    for part in (roi_head, roi_head['bbox_head']):
        part.pop('num_instance', None)  # mmdet 3 takes only 2
    roi_head['type'] = 'StandardRoIHead'
    roi_head['bbox_roi_extractor']['roi_layer'].pop('use_torchvision', None)


RTMDET_HEADS = dict(RTMDetSepBNHead='RTMDet', RTMDetInsSepBNHead='RTMDetIns')
"""Head -> detector."""


def convert_rtmdet(model: dict[str, Any]) -> None:
    """Name the detector with masks RTMDetIns, in place; ConfigError: an unknown head."""
    head = model['bbox_head'].get('type')
    if head not in RTMDET_HEADS:
        raise ConfigError(f'model.bbox_head.type={head!r}: expected one of {", ".join(RTMDET_HEADS)}')
    model['type'] = RTMDET_HEADS[head]


def convert_distilled(model: dict[str, Any]) -> None:
    """Leave out the teacher, which the test does not run."""
    for key in ('teacher_config', 'teacher_ckpt', 'eval_teacher'):
        model.pop(key, None)
    model['type'] = 'SingleStageDetector'


def convert_yolact(model: dict[str, Any]) -> None:
    """Move the segmentation branch into a head, and drop the threshold of masks (0.5, else ConfigError)."""
    head, test_cfg = model['mask_head'], model.get('test_cfg') or {}
    loss, has_branch = head.pop('loss_segm', None), head.pop('with_seg_branch', True)
    if has_branch:
        sizes = {key: head[key] for key in ('num_classes', 'in_channels')}
        model['segm_head'] = dict(type='YOLACTSegmHead', **sizes, **(dict(loss_segm=loss) if loss else {}))
    for key in ('mask_thr', 'mask_thr_binary'):
        if test_cfg.pop(key, 0.5) != 0.5:
            raise ConfigError(f'model.test_cfg.{key}: expected 0.5, which mmdet 2.28 has written in its code')


def convert_panoptic_fpn(model: dict[str, Any]) -> None:
    """Copy keys that mmdet 3 reads from `test_cfg.rcnn` into `test_cfg.panoptic`, in place."""
    test_cfg = model.get('test_cfg') or {}
    if 'panoptic' in test_cfg:
        test_cfg['panoptic'] = {**copy.deepcopy(test_cfg.get('rcnn') or {}), **test_cfg['panoptic']}


def convert_detr(model: dict[str, Any]) -> None:
    """Move transformer, queries and encoding into the head, in place, and drop the neck.

    The head has the neck's layer itself.
    """
    neck = model.pop('neck')
    head = model['bbox_head']
    head.pop('embed_dims', None)
    head.update(
        num_query=model.pop('num_queries'),
        in_channels=neck['in_channels'][0],
        transformer=dict(
            type='Transformer',
            encoder=_encoder('model.encoder', model.pop('encoder'), MULTIHEAD),
            decoder=_decoder('model.decoder', model.pop('decoder'), MULTIHEAD),
        ),
        positional_encoding=_positional_encoding(model.pop('positional_encoding')),
    )


def convert_conditional_detr(model: dict[str, Any]) -> None:
    """As `convert_detr` for Conditional DETR and DAB-DETR, whose decoders keep their settings."""
    decoder, kind = model.pop('decoder'), model['type'].replace('DETR', 'Detr')
    if patterns := model.pop('num_patterns', 0):
        raise ConfigError(f'model.num_patterns={patterns}: expected 0')
    model.pop('with_random_refpoints', None)  # only a training reads it
    convert_detr({**model, 'decoder': dict(num_layers=1)})
    model.pop('neck')
    for key in ('num_queries', 'encoder', 'positional_encoding'):
        model.pop(key)
    transformer = model['bbox_head']['transformer']
    layer = decoder['layer_cfg']
    layer['ffn_cfg'] = {**FFN_DEFAULTS, **layer.get('ffn_cfg', {})}
    transformer['type'] = 'ConditionalDetrTransformer'
    transformer['decoder'] = dict(type=f'{kind}TransformerDecoder', **decoder)
    if kind == 'DABDetr':
        transformer['encoder']['type'] = 'DABDetrTransformerEncoder'


def convert_deformable_detr(model: dict[str, Any]) -> None:
    """Move transformer, queries and encoding into the head, in place.

    ConfigError: an unknown key or value.
    """
    head, num_levels = model['bbox_head'], model.pop('num_feature_levels', 4)
    head.pop('embed_dims', None)
    two_stage, num_queries = model.pop('as_two_stage', False), model.pop('num_queries')
    transformer = dict(
        type='DeformableDetrTransformer',
        num_feature_levels=num_levels,
        encoder=_encoder('model.encoder', model.pop('encoder'), DEFORMABLE),
        decoder=_decoder(
            'model.decoder', model.pop('decoder'), DEFORMABLE, 'DeformableDetrTransformerDecoder'
        ),
    )
    if two_stage:
        transformer.update(two_stage_num_proposals=num_queries)
    head.update(
        num_query=num_queries,
        in_channels=2048,  # required by the class that the head inherits from, and not used
        as_two_stage=two_stage,
        with_box_refine=model.pop('with_box_refine', False),
        transformer=transformer,
        positional_encoding=_positional_encoding(model.pop('positional_encoding')),
    )


def convert_dino(model: dict[str, Any]) -> None:
    """As `convert_deformable_detr` with DINO's types, without denoising."""
    model.pop('dn_cfg', None)
    convert_deformable_detr(model)
    transformer = model['bbox_head']['transformer']
    transformer['type'], transformer['decoder']['type'] = 'DinoTransformer', 'DinoTransformerDecoder'
    model['bbox_head'].pop('sync_cls_avg_factor', None)


def convert_ddq(model: dict[str, Any]) -> None:
    """As `convert_dino` with DDQ's types; ConfigError: `dqs_cfg` has another type than `nms`."""
    nms = model.pop('dqs_cfg', dict(type='nms', iou_threshold=0.8))
    _check_keys('model.dqs_cfg', nms, {'type', 'iou_threshold'})
    if nms['type'] != 'nms':
        raise ConfigError(f"model.dqs_cfg.type={nms['type']!r}: expected 'nms'")
    model.pop('dense_topk_ratio', None)  # only a training reads these
    model['bbox_head'].pop('aux_num_pos', None)
    convert_dino(model)
    transformer = model['bbox_head']['transformer']
    transformer['type'], transformer['decoder']['type'] = 'DDQTransformer', 'DDQTransformerDecoder'
    transformer['decoder']['iou_threshold'] = nms['iou_threshold']


def convert_mask_former(model: dict[str, Any]) -> None:
    """Convert layers and encodings of MaskFormer or Mask2Former in place.

    ConfigError: an unknown key or value.
    """
    head, is_mask2former = model['panoptic_head'], model['type'] == 'Mask2Former'
    pixel_decoder, path = head['pixel_decoder'], 'model.panoptic_head'
    attention = DEFORMABLE if is_mask2former else MULTIHEAD
    if 'encoder' in pixel_decoder:
        pixel_decoder['encoder'] = _encoder(
            f'{path}.pixel_decoder.encoder', pixel_decoder['encoder'], attention
        )
        pixel_decoder['positional_encoding'] = _positional_encoding(pixel_decoder['positional_encoding'])
    head['positional_encoding'] = _positional_encoding(head['positional_encoding'])
    head['transformer_decoder'] = _decoder(
        f'{path}.transformer_decoder', head['transformer_decoder'], MULTIHEAD, cross_first=is_mask2former
    )


CONVERTERS: dict[str, Callable[[dict[str, Any]], None]] = {
    'CenterNet': convert_centernet,
    'ConditionalDETR': convert_conditional_detr,
    'CrowdDet': convert_crowddet,
    'DABDETR': convert_conditional_detr,
    'DDQDETR': convert_ddq,
    'DETR': convert_detr,
    'DeformableDETR': convert_deformable_detr,
    'DINO': convert_dino,
    'FCOS': convert_fcos,
    'KnowledgeDistillationSingleStageDetector': convert_distilled,
    'PanopticFPN': convert_panoptic_fpn,
    'RTMDet': convert_rtmdet,
    'YOLACT': convert_yolact,
    'MaskFormer': convert_mask_former,
    'Mask2Former': convert_mask_former,
}
"""Detector -> converter of its model, in place."""


# ---------------------------------------------------------------- layers of transformers


def _encoder(path: str, cfg: dict[str, Any], attention: str) -> dict[str, Any]:
    order = SELF_ATTENTION + FFN
    return dict(type='DetrTransformerEncoder', **_layers(path, cfg, dict(self_attn=attention), order))


def _decoder(
    path: str,
    cfg: dict[str, Any],
    attention: str,
    decoder: str = 'DetrTransformerDecoder',
    cross_first: bool = False,
) -> dict[str, Any]:
    attentions = CROSS_ATTENTION + SELF_ATTENTION if cross_first else SELF_ATTENTION + CROSS_ATTENTION
    layers = _layers(path, cfg, dict(self_attn=MULTIHEAD, cross_attn=attention), attentions + FFN)
    norm = {}
    if decoder == 'DetrTransformerDecoder':
        norm = dict(post_norm_cfg=cfg.get('post_norm_cfg', dict(type='LN')))
    return dict(type=decoder, return_intermediate=cfg.get('return_intermediate', True), **norm, **layers)


def _layers(
    path: str, cfg: dict[str, Any], attention_types: dict[str, str], order: tuple[str, ...]
) -> dict[str, Any]:
    _check_keys(path, cfg, STACK_KEYS)
    layer = cfg.get('layer_cfg') or {}
    _check_keys(f'{path}.layer_cfg', layer, LAYER_KEYS)
    ffn = {**FFN_DEFAULTS, **(layer.get('ffn_cfg') or {})}
    attentions = []
    for operation in order:
        if operation not in attention_types:
            continue
        kind = attention_types[operation]
        defaults = MULTIHEAD_DEFAULTS if kind == MULTIHEAD else {}
        attention = {**defaults, **(layer.get(f'{operation}_cfg') or {})}
        attention.pop('batch_first', None)  # always true in mmdet 3
        attentions.append(dict(type=kind, **attention))
    are_equal = attentions[0] == attentions[-1]
    layers = dict(
        type='BaseTransformerLayer',
        attn_cfgs=attentions[0] if are_equal else attentions,  # heads read num_heads from a single one
        ffn_cfgs=dict(type='FFN', **ffn),
        operation_order=order,
    )
    if 'cross_attn' in attention_types:
        layers |= dict(type='DetrTransformerDecoderLayer', feedforward_channels=ffn['feedforward_channels'])
    if layer.get('norm_cfg'):
        layers['norm_cfg'] = layer['norm_cfg']
    return dict(num_layers=cfg['num_layers'], transformerlayers=layers)


def _check_keys(path: str, cfg: dict[str, Any], expected: set[str]) -> None:
    if unexpected := sorted(cfg.keys() - expected):
        raise ConfigError(
            f'{path}.{unexpected[0]}={cfg[unexpected[0]]!r} is not known here; expected no key but '
            f'{", ".join(sorted(expected))}'
        )


def _positional_encoding(cfg: dict[str, Any]) -> dict[str, Any]:
    return dict(type='SinePositionalEncoding', **cfg)
