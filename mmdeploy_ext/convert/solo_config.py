"""What a checkpoint of the original SOLO repository says about the config of mmdet that fits it.

Source of the differences: WXinlong/SOLO f4cd03b `configs/solo`, `configs/solov2` against mmdet 2.28.2's.
"""

from __future__ import annotations

import ast
import math
import re
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BLOCKS = {  # has a third convolution, blocks per stage: depth
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}
DCN_TYPES = {2: 'DCN', 3: 'DCNv2'}  # numbers per kernel element: offsets x, y and, in version 2, a mask
TOWERS = r'^mask_head\.(?:cls|kernel|mask)_convs\.'
FEATURE = r'^mask_head\.mask_feature_head\.'
TOWER_NORM = dict(type='GN', num_groups=32)  # the original's heads take no other, whatever the config says
CONFIG_GRIDS = re.compile(r'\bnum_grids=([\[(][\d,\s]*[\])])')
LIGHT_DCN_SCALE = (852, 512)  # the original's only test size of light models with DCN; mmdet says 768x448


def check_head(cfg: Any, head: str, shapes: Mapping[str, tuple[int, ...]], text: object = None) -> None:
    """Refuse a config of another model.

    Args:
        cfg: config of mmdet.
        head: mmdet's type of the checkpoint's head.
        shapes: of the checkpoint, by mmdet's names.
        text: of the config that was kept in the checkpoint, if any; SOLOv2's layers do not tell the grids.

    Raises:
        CheckpointError: the head's type or its grids differ.
    """
    own = (cfg.model.get('mask_head') or {}).get('type')
    if own != head:
        raise CheckpointError(
            f'the checkpoint has the layers of {head}, {cfg.filename} has mask_head.type={own!r}; '
            f'give the config of that head with --config'
        )
    grids, expected = checkpoint_grids(shapes) or config_grids(text), list(cfg.model.mask_head.num_grids)
    if grids and grids != expected:
        raise CheckpointError(
            f'the checkpoint was trained on grids of {grids} cells, {cfg.filename} says '
            f'mask_head.num_grids={expected}; give the config that the checkpoint was trained with'
        )


def checkpoint_grids(shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
    """Return the cells per side of every level; empty for SOLOv2, whose layers do not know them.

    Args:
        shapes: of a state dict, by mmdet's names.
    """
    for name, channels_per in (('conv_mask_list', 2), ('conv_mask_list_x', 1)):
        channels = [
            shapes[key][0]
            for level in range(len(shapes))
            if (key := f'mask_head.{name}.{level}.weight') in shapes
        ]
        if channels:
            return [math.isqrt(count) if channels_per == 2 else count for count in channels]
    return []


def config_grids(text: object) -> list[int]:
    """Return the grids that the text of a config names; empty where it names none or several."""
    found = {match.group(1) for match in CONFIG_GRIDS.finditer(text)} if isinstance(text, str) else set()
    return list(ast.literal_eval(found.pop())) if len(found) == 1 else []


def fit_config(cfg: Any, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Change a config of mmdet in place, so that it builds the checkpoint's model and tests as the original.

    Args:
        cfg: config of mmdet with the checkpoint's head.
        shapes: of the checkpoint, by mmdet's names.

    Returns:
        What was changed, `key: old -> new`; empty where the config fitted.

    Raises:
        CheckpointError: a deformable convolution of an unknown kind.
    """
    before = _flat(cfg)
    model = cfg.model
    _fit_depth(model.backbone, shapes)
    _fit_backbone_dcn(model.backbone, shapes)
    _fit_towers(model.mask_head, shapes)
    _fit_norm(model.mask_head)
    if _light_with_dcn_v1(model.mask_head):
        for pipeline in _test_pipelines(cfg):
            _set_scale(pipeline)
    after = _flat(cfg)
    changed = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    return [f'{key}: {before.get(key)} -> {after.get(key)}' for key in changed]


def _flat(cfg: Any) -> dict[str, str]:
    model, head = cfg.model, cfg.model.mask_head
    facts = {f'backbone.{key}': model.backbone.get(key) for key in ('depth', 'dcn', 'stage_with_dcn')}
    facts |= {f'mask_head.{key}': head.get(key) for key in ('dcn_cfg', 'dcn_apply_to_all_conv', 'norm_cfg')}
    facts['mask_head.mask_feature_head.conv_cfg'] = head.get('mask_feature_head', {}).get('conv_cfg')
    scales = [step.get('img_scale') for pipeline in _test_pipelines(cfg) for step in pipeline]
    facts['img_scale of the test'] = next((scale for scale in scales if scale), None)
    return {key: str(value) for key, value in facts.items()}


def _fit_depth(backbone: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    bottleneck = 'backbone.layer1.0.conv3.weight' in shapes
    blocks = tuple(
        len({key.split('.')[2] for key in shapes if key.startswith(f'backbone.layer{stage}.')})
        for stage in (1, 2, 3, 4)
    )
    depth, own = BLOCKS.get((bottleneck, blocks)), backbone.get('depth')
    if depth is None or depth == own or (depth >= 50) != (own >= 50):
        return  # of two widths, the necks differ too: another config is needed, and the shapes will say so
    backbone.depth = depth
    pretrained = backbone.get('init_cfg') or {}
    if pretrained.get('checkpoint') == f'torchvision://resnet{own}':
        pretrained['checkpoint'] = f'torchvision://resnet{depth}'


def _dcn_type(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> str:
    """Return the type of the deformable convolutions whose names match; '' where there is none."""
    kinds = {
        key: shape[0] / math.prod(shape[2:])
        for key, shape in shapes.items()
        if key.endswith('conv_offset.weight') and re.match(pattern, key)
    }
    unknown = [key for key, kind in kinds.items() if kind not in DCN_TYPES]
    if unknown or len(set(kinds.values())) > 1:
        key = (unknown or list(kinds))[0]
        raise CheckpointError(
            f'{key}: {shapes[key]}, expected 18 channels (DCN) or 27 (DCNv2) for a 3x3 kernel, the same '
            f'in all of {pattern}; the original repository has no other'
        )
    return DCN_TYPES[next(iter(kinds.values()))] if kinds else ''


def _fit_backbone_dcn(backbone: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    kind = _dcn_type(shapes, r'^backbone\.')
    stages = tuple(
        any(key.startswith(f'backbone.layer{stage}.') and '.conv_offset.' in key for key in shapes)
        for stage in (1, 2, 3, 4)
    )
    own = (backbone.get('dcn') or {}).get('type', '')
    if kind == own and (not kind or stages == tuple(backbone.get('stage_with_dcn', ()))):
        return
    backbone.dcn = dict(type=kind, deform_groups=1, fallback_on_stride=False) if kind else None
    backbone.stage_with_dcn = stages


def _fit_towers(head: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    kind = _dcn_type(shapes, TOWERS)
    if kind != (head.get('dcn_cfg') or {}).get('type', ''):
        head.dcn_cfg = dict(type=kind) if kind else None
    if kind and head.type == 'SOLOV2Head':
        layers = range(head.stacked_convs)
        everywhere = all(f'mask_head.cls_convs.{i}.conv.conv_offset.weight' in shapes for i in layers)
        if everywhere != head.get('dcn_apply_to_all_conv', True):
            head.dcn_apply_to_all_conv = everywhere
    feature = head.get('mask_feature_head')
    if feature is not None:
        kind = _dcn_type(shapes, FEATURE)
        if kind != (feature.get('conv_cfg') or {}).get('type', ''):
            feature.conv_cfg = dict(type=kind) if kind else None


def _fit_norm(head: Any) -> None:
    own = head.get('norm_cfg', TOWER_NORM) or {}
    if any(own.get(key) != value for key, value in TOWER_NORM.items()):
        head.norm_cfg = dict(TOWER_NORM, requires_grad=True)


def _light_with_dcn_v1(head: Any) -> bool:
    kind = (head.get('dcn_cfg') or {}).get('type')
    return head.type == 'SOLOV2Head' and kind == 'DCN' and not head.get('dcn_apply_to_all_conv', True)


def _test_pipelines(cfg: Any) -> Iterator[Any]:
    data = cfg.get('data') or {}
    for pipeline in (
        (data.get('test') or {}).get('pipeline'),
        (data.get('val') or {}).get('pipeline'),
        cfg.get('test_pipeline'),
    ):
        if pipeline:
            yield pipeline


def _set_scale(pipeline: Any) -> None:
    for step in pipeline:
        if step['type'] == 'MultiScaleFlipAug' and sorted(step['img_scale']) != sorted(LIGHT_DCN_SCALE):
            step['img_scale'] = LIGHT_DCN_SCALE
