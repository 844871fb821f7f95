"""The model of a config of mmdet 3 as mmdet 2.28 builds it.

Of 680 models of mmdet 3.3.0's configs 420 are those of mmdet 2.28.2 letter by letter. What differs in the
others of the same architectures is here; any other key has to be one that mmdet 2.28 knows. Source: the
configs of both, compared key by key.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.weights.convert import mmdet3_transformers as transformers

OWN = {
    'ConditionalDETR': 'Conditional DETR',
    'DABDETR': 'DAB-DETR',
    'CondInst': 'CondInst',
    'BoxInst': 'BoxInst',
    'DDQDETR': 'DDQ',
    'CrowdDet': 'CrowdDet',
    'GLIP': 'GLIP',
    'GroundingDINO': 'Grounding DINO',
    'SoftTeacher': 'Soft Teacher',
}
"""Detectors that mmdet 3 alone has, without those that this project has a part for."""
PLUGINS = {'RTMDet': 'mmdeploy_ext.models', 'DINO': 'mmdeploy_ext.models'}
"""Detector that mmdet 2.28 lacks -> module of this project that registers it."""
COSTS = {
    'HungarianAssigner': ('cls_cost', 'reg_cost', 'iou_cost'),
    'MaskHungarianAssigner': ('cls_cost', 'mask_cost', 'dice_cost'),
}
"""Assigner of mmdet 2 -> what it calls the first, second and third of `match_costs`."""
PROPOSALS = ('RPNHead', 'GARPNHead', 'CascadeRPNHead', 'EmbeddingRPNHead')
"""Heads that make proposals in mmdet 2.28."""
SCOPE = 'mmdet.'


def parts(value: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield path and dict of every part of a config that has a `type`, the outer ones first."""
    if isinstance(value, dict):
        if isinstance(value.get('type'), str):
            yield path, value
        for key, inner in value.items():
            yield from parts(inner, f'{path}.{key}')
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from parts(inner, f'{path}.{index}')


def without_scope(where: str, config: Any) -> Any:
    """Return a copy of a part of a config whose types are not said to be mmdet's; refuse other packages'."""
    config = copy.deepcopy(config)
    for path, part in parts(config, where):
        part.pop('_scope_', None)
        part['type'] = part['type'].removeprefix(SCOPE)
        if '.' in part['type']:
            raise ConfigError(f'{path}.type={part["type"]!r} is of another package; expected a part of mmdet')
    return config


def model2(config: dict[str, Any]) -> dict[str, Any]:
    """Return the model of a config of mmdet 3 as mmdet 2.28 takes it, without a `data_preprocessor`.

    Raises:
        ConfigError: a detector or a key that mmdet 2.28 does not have; no file named.
    """
    model = without_scope('model', config)
    model.pop('data_preprocessor', None)
    kind = model.get('type')
    if kind in OWN:
        raise ConfigError(
            f'model.type={kind!r}: {OWN[kind]} came with mmdet 3, and neither mmdet 2.28 nor a family of '
            f'this project has it; expected a detector of mmdet 2.28'
        )
    if rewrite := REWRITES.get(kind):
        rewrite(model)
    _assigners(model)
    head = model.get('rpn_head')
    if isinstance(head, dict) and head.get('type') not in PROPOSALS:  # mmdet 3 takes them of any dense head
        raise ConfigError(
            f'model.rpn_head.type={head.get("type")!r}: mmdet 2.28 takes no proposals of it; expected one of '
            f'{", ".join(PROPOSALS)}'
        )
    semantic = (model.get('roi_head') or {}).get('semantic_head')
    if isinstance(semantic, dict):
        semantic.pop('seg_scale_factor', None)  # which only a loss reads
    return model


def _assigners(model: dict[str, Any]) -> None:
    """Give the costs of a Hungarian assigner the names of mmdet 2."""
    kind = 'MaskHungarianAssigner' if 'panoptic_head' in model else 'HungarianAssigner'
    for _, part in parts(model.get('train_cfg') or {}, 'model.train_cfg'):
        costs = part.get('match_costs')
        if part['type'] == 'HungarianAssigner' and isinstance(costs, list | tuple):
            if len(costs) != len(COSTS[kind]):
                raise ConfigError(f'model.train_cfg: {kind} with {len(costs)} match_costs, expected 3')
            part.update(type=kind, **dict(zip(COSTS[kind], part.pop('match_costs'), strict=True)))


def _centernet(model: dict[str, Any]) -> None:
    head, neck = model['bbox_head'], model['neck']
    if head.get('type') != 'CenterNetHead':
        raise ConfigError(
            f'model.bbox_head.type={head.get("type")!r}: CenterNet with FPN came with mmdet 3; '
            f'expected CenterNetHead'
        )
    head['in_channel'], head['feat_channel'] = head.pop('in_channels'), head.pop('feat_channels')
    neck['in_channel'] = neck.pop('in_channels')


def _rtmdet(model: dict[str, Any]) -> None:
    """Take the boxes alone; mmdet 3 trains it, by an assigner that mmdet 2.28 lacks."""
    kind = model['bbox_head'].get('type')
    if kind != 'RTMDetSepBNHead':
        raise ConfigError(
            f'model.bbox_head.type={kind!r}: of RTMDet the detectors of boxes are exported; expected '
            f'RTMDetSepBNHead'
        )
    model['train_cfg'] = None


def _yolact(model: dict[str, Any]) -> None:
    """Give YOLACT the head of segmentation beside its prototypes, where mmdet 3 has it inside them."""
    head, test = model['mask_head'], model.get('test_cfg') or {}
    loss, inside = head.pop('loss_segm', None), head.pop('with_seg_branch', True)
    if inside:
        own = {key: head[key] for key in ('num_classes', 'in_channels')}
        model['segm_head'] = dict(type='YOLACTSegmHead', **own, **(dict(loss_segm=loss) if loss else {}))
    for key in ('mask_thr', 'mask_thr_binary'):
        if test.pop(key, 0.5) != 0.5:
            raise ConfigError(f'model.test_cfg.{key}: expected 0.5, which mmdet 2.28 has written in its code')


def _panoptic_fpn(model: dict[str, Any]) -> None:
    """Repeat what mmdet 3 takes from `rcnn` where mmdet 2 asks `panoptic`."""
    test = model.get('test_cfg') or {}
    if 'panoptic' in test:
        test['panoptic'] = {**copy.deepcopy(test.get('rcnn') or {}), **test['panoptic']}


REWRITES: dict[str, Callable[[dict[str, Any]], None]] = {
    'CenterNet': _centernet,
    'DETR': transformers.detr,
    'DeformableDETR': transformers.deformable_detr,
    'DINO': transformers.dino,
    'PanopticFPN': _panoptic_fpn,
    'RTMDet': _rtmdet,
    'YOLACT': _yolact,
    'MaskFormer': transformers.mask_former,
    'Mask2Former': transformers.mask_former,
}
"""Type of a detector -> what rewrites its model, in place."""
