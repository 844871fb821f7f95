"""What a checkpoint of the original SOLO repository says about the config of mmdet that fits it.

Source of the differences: WXinlong/SOLO f4cd03b `configs/solo`, `configs/solov2` against mmdet 2.28.2's.
"""

import ast
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmdeploy_ext.core.errors import CheckpointError, ConfigError
from mmdeploy_ext.weights.convert.solo_names import HEADS

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
MMDET_GRIDS, MMDET_CONVS = [40, 36, 24, 16, 12], 4
"""What mmdet's heads take where a config says nothing."""
OPTIONAL_DICTS = ('backbone.dcn', 'mask_head.dcn_cfg', 'mask_head.norm_cfg', 'mask_head.mask_feature_head')


def check_config(cfg: Any) -> None:
    """Refuse a config that is none of SOLO's, or has a value of another kind where one is read here."""

    def demand(key: str, value: object, fits: bool, expected: str) -> None:
        if not fits:
            raise ConfigError(f'{cfg.filename}: {key}={value!r}, expected {expected}')

    model = cfg.get('model')
    demand('model', model, isinstance(model, dict), "a dict: a detector of mmdet's SOLO")
    head, backbone = model.get('mask_head'), model.get('backbone')
    kind = head.get('type') if isinstance(head, dict) else None
    demand('mask_head.type', kind, kind in HEADS.values(), f'one of {", ".join(HEADS.values())}')
    demand('model.backbone', backbone, isinstance(backbone, dict), 'a dict: a ResNet or ResNeXt')
    depth = backbone.get('depth')
    own = f'a number: of a ResNet or ResNeXt, the original has no {backbone.get("type")!r}'
    demand('model.backbone.depth', depth, isinstance(depth, int), own)
    for key in OPTIONAL_DICTS:
        part, _, name = key.partition('.')
        value = model[part].get(name)
        demand(f'model.{key}', value, value is None or isinstance(value, dict), 'a dict or None')
    stages = backbone.get('stage_with_dcn', ())
    demand('model.backbone.stage_with_dcn', stages, isinstance(stages, list | tuple), 'a list of four')
    grids, convs = head.get('num_grids', MMDET_GRIDS), head.get('stacked_convs', MMDET_CONVS)
    numbers = isinstance(grids, list | tuple) and all(isinstance(grid, int) for grid in grids)
    demand('model.mask_head.num_grids', grids, numbers and bool(grids), 'a list of numbers, one per level')
    demand('model.mask_head.stacked_convs', convs, isinstance(convs, int), 'a number')
    for key, pipeline in _test_pipelines(cfg):
        steps = isinstance(pipeline, list | tuple) and all(isinstance(step, dict) for step in pipeline)
        demand(key, pipeline, steps, 'a list of dicts')


def check_head(cfg: Any, head: str, shapes: Mapping[str, tuple[int, ...]], text: object = None) -> None:
    """Refuse a config of another model than that of a checkpoint's head and shapes, by mmdet's names.

    `text` is of the config that was kept in the checkpoint, if any; SOLOv2's layers do not tell the grids.
    """
    own = (cfg.model.get('mask_head') or {}).get('type')
    if own != head:
        raise CheckpointError(
            f'the checkpoint has the layers of {head}, {cfg.filename} has mask_head.type={own!r}; '
            f'give the config of that head with --config'
        )
    grids = checkpoint_grids(shapes) or config_grids(text)
    expected = list(cfg.model.mask_head.get('num_grids', MMDET_GRIDS))
    if grids and grids != expected:
        raise CheckpointError(
            f'the checkpoint was trained on grids of {grids} cells, {cfg.filename} says '
            f'mask_head.num_grids={expected}; give the config that the checkpoint was trained with'
        )


def checkpoint_grids(shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
    """Return the cells per side of every level, by mmdet's names; empty for SOLOv2, which keeps none."""
    for name, channels_per in (('conv_mask_list', 2), ('conv_mask_list_x', 1)):
        channels = [
            (*shapes[key], 0)[0]
            for level in range(len(shapes))
            if (key := f'mask_head.{name}.{level}.weight') in shapes
        ]
        if channels:
            return [math.isqrt(count) if channels_per == 2 else count for count in channels]
    return []


def config_grids(text: object) -> list[int]:
    """Return the grids that the text of a config names; empty where it names none, several or no list."""
    found = {match.group(1) for match in CONFIG_GRIDS.finditer(text)} if isinstance(text, str) else set()
    try:
        grids = ast.literal_eval(found.pop()) if len(found) == 1 else ()
    except SyntaxError:
        return []
    return list(grids) if isinstance(grids, list | tuple) else []


def fit_config(cfg: Any, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Change a config with the checkpoint's head in place, so that it builds its model and tests as it did.

    Return what was changed, `key: old -> new`; empty where the config fitted. CheckpointError where a
    deformable convolution is of an unknown kind.
    """
    before = _flat(cfg)
    backbone, head = cfg.model.backbone, cfg.model.mask_head
    _fit_depth(backbone, shapes)
    _fit_backbone_dcn(backbone, shapes)
    _fit_towers(head, shapes)
    own = head.get('norm_cfg', TOWER_NORM) or {}
    if any(own.get(key) != value for key, value in TOWER_NORM.items()):
        head.norm_cfg = dict(TOWER_NORM, requires_grad=True)
    kind = (head.get('dcn_cfg') or {}).get('type')
    if head.type == 'SOLOV2Head' and kind == 'DCN' and not head.get('dcn_apply_to_all_conv', True):
        for _, pipeline in _test_pipelines(cfg):
            _set_scale(pipeline)
    after = _flat(cfg)  # of the same keys
    return [f'{key}: {before[key]} -> {after[key]}' for key in sorted(before) if before[key] != after[key]]


def _flat(cfg: Any) -> dict[str, str]:
    model, head = cfg.model, cfg.model.mask_head
    facts = {f'backbone.{key}': model.backbone.get(key) for key in ('depth', 'dcn', 'stage_with_dcn')}
    facts |= {f'mask_head.{key}': head.get(key) for key in ('dcn_cfg', 'dcn_apply_to_all_conv', 'norm_cfg')}
    facts['mask_head.mask_feature_head.conv_cfg'] = (head.get('mask_feature_head') or {}).get('conv_cfg')
    scales = [step.get('img_scale') for _, pipeline in _test_pipelines(cfg) for step in pipeline]
    facts['img_scale of the test'] = next((scale for scale in scales if scale), None)
    return {key: str(value) for key, value in facts.items()}


def _fit_depth(backbone: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    blocks = tuple(
        len({key.split('.')[2] for key in shapes if key.startswith(f'backbone.layer{stage}.')})
        for stage in (1, 2, 3, 4)
    )
    depth = BLOCKS.get(('backbone.layer1.0.conv3.weight' in shapes, blocks))
    own = backbone.get('depth')
    if depth is None or depth == own or (depth >= 50) != (own >= 50):
        return  # of two widths, the necks differ too: another config is needed, and the shapes will say so
    backbone.depth = depth
    pretrained = backbone.get('init_cfg') or {}
    if isinstance(pretrained, dict) and pretrained.get('checkpoint') == f'torchvision://resnet{own}':
        pretrained['checkpoint'] = f'torchvision://resnet{depth}'


def _dcn_type(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> str:
    """Return the type of the deformable convolutions whose names match; '' where there is none."""
    kinds = {
        key: shape[0] / math.prod(shape[2:]) if len(shape) == 4 and all(shape) else 0
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
        layers = range(head.get('stacked_convs', MMDET_CONVS))
        everywhere = all(f'mask_head.cls_convs.{i}.conv.conv_offset.weight' in shapes for i in layers)
        if everywhere != head.get('dcn_apply_to_all_conv', True):
            head.dcn_apply_to_all_conv = everywhere
    feature = head.get('mask_feature_head')
    if feature is not None:
        kind = _dcn_type(shapes, FEATURE)
        if kind != (feature.get('conv_cfg') or {}).get('type', ''):
            feature.conv_cfg = dict(type=kind) if kind else None


def _test_pipelines(cfg: Any) -> Iterator[tuple[str, Any]]:
    """Yield key and steps of every pipeline that tests, also those of data sets in data sets."""
    data = cfg.get('data') or {}
    for split in ('test', 'val'):
        yield from _pipelines(f'data.{split}', data.get(split) if isinstance(data, dict) else None)
    if cfg.get('test_pipeline') is not None:
        yield 'test_pipeline', cfg.test_pipeline


def _pipelines(key: str, dataset: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(dataset, list | tuple):
        for index, one in enumerate(dataset):
            yield from _pipelines(f'{key}[{index}]', one)
    elif isinstance(dataset, dict):
        if dataset.get('pipeline') is not None:
            yield f'{key}.pipeline', dataset['pipeline']
        for inner in ('dataset', 'datasets'):
            yield from _pipelines(f'{key}.{inner}', dataset.get(inner))


def _set_scale(pipeline: Any) -> None:
    for step in (step for step in pipeline if step.get('type') == 'MultiScaleFlipAug'):
        if sorted(step.get('img_scale') or ()) != sorted(LIGHT_DCN_SCALE):
            step.pop('scale_factor', None)
            step['img_scale'] = LIGHT_DCN_SCALE
