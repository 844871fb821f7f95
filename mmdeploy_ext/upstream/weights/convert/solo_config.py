"""Fits a config of mmdet to a checkpoint of the original SOLO repository.

Source of the differences: WXinlong/SOLO f4cd03b `configs/solo`, `configs/solov2` against mmdet 2.28.2's.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmdeploy_ext.base.errors import CheckpointError, ConfigError

DEPTHS = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}
"""(third convolution in blocks, blocks per stage) -> depth of the ResNet."""
DCN_TYPES = {2: 'DCN', 3: 'DCNv2'}
"""Values of an offset layer per kernel element -> type: x and y, and in version 2 a mask."""
TOWERS = r'^mask_head\.(?:cls|kernel|mask)_convs\.'
"""Convolutions before a head's outputs."""
FEATURE = r'^mask_head\.mask_feature_head\.'
TOWER_NORM = dict(type='GN', num_groups=32)
"""Normalisation of the original's towers, whatever its config says."""
CONFIG_GRIDS = re.compile(r'\bnum_grids=([\[(][\d,\s]*[\])])')
LIGHT_DCN_SCALE = (852, 512)
"""(w, h) of the original's test of light models with DCN; mmdet says 768x448."""
MMDET_GRIDS, MMDET_CONVS = [40, 36, 24, 16, 12], 4
"""Defaults of mmdet's heads."""
Shapes = Mapping[str, tuple[int, ...]]
"""Tensors by mmdet's names."""


def check_config(cfg: Any) -> None:
    """Raise ConfigError for a config without a ResNet."""
    model = cfg.get('model') or {}
    depth = (model.get('backbone') or {}).get('depth')
    if not isinstance(depth, int):
        raise ConfigError(f'{cfg.filename}: model.backbone.depth={depth!r}, expected the depth of a ResNet')


def check_head(cfg: Any, head: str, shapes: Shapes, text: object = None) -> None:
    """Raise CheckpointError if head type or grids of config and checkpoint differ.

    SOLOv2's layers do not depend on the grids, which come from `text`, the checkpoint's config.
    """
    config_head = (cfg.model.get('mask_head') or {}).get('type')
    if config_head != head:
        raise CheckpointError(
            f'the checkpoint has the layers of {head}, {cfg.filename} has mask_head.type={config_head!r}; '
            'pass the config of that head with --config'
        )
    grids = checkpoint_grids(shapes) or config_grids(text)
    expected = list(cfg.model.mask_head.get('num_grids', MMDET_GRIDS))
    if grids and grids != expected:
        raise CheckpointError(
            f'the checkpoint was trained on grids of {grids} cells, {cfg.filename} has '
            f'mask_head.num_grids={expected}; pass the config that the checkpoint was trained with'
        )


def checkpoint_grids(shapes: Shapes) -> list[int]:
    """Cells per side of every level; [] for SOLOv2."""

    def channels(name: str) -> list[int]:
        keys = (f'mask_head.{name}.{level}.weight' for level in range(len(shapes)))
        return [shapes[key][0] for key in keys if key in shapes]

    return [math.isqrt(cells) for cells in channels('conv_mask_list')] or channels('conv_mask_list_x')


def config_grids(text: object) -> list[int]:
    """Grids in the text of a config, or []."""
    lists = set(CONFIG_GRIDS.findall(text)) if isinstance(text, str) else set()
    return [int(cells) for cells in re.findall(r'\d+', lists.pop())] if len(lists) == 1 else []


def fit_config(cfg: Any, shapes: Shapes) -> list[str]:
    """Fit a config in place to build and test the checkpoint's model; return changes, `key: old -> new`."""
    before = _compared_values(cfg)
    backbone, head = cfg.model.backbone, cfg.model.mask_head
    _fit_depth(backbone, shapes)
    _fit_backbone_dcn(backbone, shapes)
    _fit_towers(head, shapes)
    norm = head.get('norm_cfg', TOWER_NORM) or {}
    if any(norm.get(key) != value for key, value in TOWER_NORM.items()):
        head.norm_cfg = dict(TOWER_NORM, requires_grad=True)
    dcn_type = (head.get('dcn_cfg') or {}).get('type')
    if head.type == 'SOLOV2Head' and dcn_type == 'DCN' and not head.get('dcn_apply_to_all_conv', True):
        for pipeline in test_pipelines(cfg):
            set_light_dcn_scale(pipeline)
    after = _compared_values(cfg)
    return [f'{key}: {before[key]} -> {after[key]}' for key in sorted(before) if before[key] != after[key]]


def _compared_values(cfg: Any) -> dict[str, str]:
    model, head = cfg.model, cfg.model.mask_head
    values = {f'backbone.{key}': model.backbone.get(key) for key in ('depth', 'dcn', 'stage_with_dcn')}
    values |= {f'mask_head.{key}': head.get(key) for key in ('dcn_cfg', 'dcn_apply_to_all_conv', 'norm_cfg')}
    values['mask_head.mask_feature_head.conv_cfg'] = (head.get('mask_feature_head') or {}).get('conv_cfg')
    scales = [step.get('img_scale') for pipeline in test_pipelines(cfg) for step in pipeline]
    values['img_scale of the test'] = next((scale for scale in scales if scale), None)
    return {key: str(value) for key, value in values.items()}


def _fit_depth(backbone: Any, shapes: Shapes) -> None:
    blocks = tuple(
        len({key.split('.')[2] for key in shapes if key.startswith(f'backbone.layer{stage}.')})
        for stage in (1, 2, 3, 4)
    )
    depth = DEPTHS.get(('backbone.layer1.0.conv3.weight' in shapes, blocks))
    config_depth = backbone.get('depth')
    if depth is None or depth == config_depth or (depth >= 50) != (config_depth >= 50):
        return  # with another type of block the necks differ too: the comparison of shapes refuses the config
    backbone.depth = depth
    pretrained = backbone.get('init_cfg') or {}
    if isinstance(pretrained, dict) and pretrained.get('checkpoint') == f'torchvision://resnet{config_depth}':
        pretrained['checkpoint'] = f'torchvision://resnet{depth}'


def _dcn_type(shapes: Shapes, pattern: str) -> str:
    for key, shape in shapes.items():
        if key.endswith('conv_offset.weight') and re.match(pattern, key):
            return DCN_TYPES.get(shape[0] / math.prod(shape[2:]), '')
    return ''


def _fit_backbone_dcn(backbone: Any, shapes: Shapes) -> None:
    dcn_type = _dcn_type(shapes, r'^backbone\.')
    stages = tuple(
        any(key.startswith(f'backbone.layer{stage}.') and '.conv_offset.' in key for key in shapes)
        for stage in (1, 2, 3, 4)
    )
    same_type = dcn_type == (backbone.get('dcn') or {}).get('type', '')
    if same_type and (not dcn_type or stages == tuple(backbone.get('stage_with_dcn', ()))):
        return
    backbone.dcn = dict(type=dcn_type, deform_groups=1, fallback_on_stride=False) if dcn_type else None
    backbone.stage_with_dcn = stages


def _fit_towers(head: Any, shapes: Shapes) -> None:
    dcn_type = _dcn_type(shapes, TOWERS)
    if dcn_type != (head.get('dcn_cfg') or {}).get('type', ''):
        head.dcn_cfg = dict(type=dcn_type) if dcn_type else None
    if dcn_type and head.type == 'SOLOV2Head':
        layers = range(head.get('stacked_convs', MMDET_CONVS))
        in_all = all(f'mask_head.cls_convs.{i}.conv.conv_offset.weight' in shapes for i in layers)
        if in_all != head.get('dcn_apply_to_all_conv', True):
            head.dcn_apply_to_all_conv = in_all
    feature_head = head.get('mask_feature_head')
    if feature_head is not None:
        dcn_type = _dcn_type(shapes, FEATURE)
        if dcn_type != (feature_head.get('conv_cfg') or {}).get('type', ''):
            feature_head.conv_cfg = dict(type=dcn_type) if dcn_type else None


def test_pipelines(cfg: Any) -> Iterator[Any]:
    """Yield the steps of every pipeline of test and validation."""
    data = cfg.get('data') or {}
    for split in ('test', 'val'):
        if pipeline := (data.get(split) or {}).get('pipeline'):
            yield pipeline
    if cfg.get('test_pipeline'):
        yield cfg.test_pipeline


def set_light_dcn_scale(pipeline: Any) -> None:
    """Set `LIGHT_DCN_SCALE` in the MultiScaleFlipAug steps in place."""
    for step in pipeline:
        if step.get('type') != 'MultiScaleFlipAug':
            continue
        if sorted(step.get('img_scale') or ()) != sorted(LIGHT_DCN_SCALE):
            step.pop('scale_factor', None)
            step['img_scale'] = LIGHT_DCN_SCALE
