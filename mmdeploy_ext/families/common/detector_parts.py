"""Parts of mmdet's detectors: heads in a test; backbones and necks that need certain sizes."""

import copy
import inspect
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from mmdet.models.builder import BACKBONES, DETECTORS, build_head
from mmdet.models.detectors import SingleStageDetector
from torch import nn

from mmdeploy_ext.base.config import test_datasets
from mmdeploy_ext.base.errors import ConfigError, UsageError
from mmdeploy_ext.exporting.postprocess.suppression import number, positive
from mmdeploy_ext.families.first_run import own_forward, picture_channels
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.upstream.models.building import registered_class
from mmdeploy_ext.upstream.weights.checkpoint import undrawn_weights

SIZED_ATTENTION = dict(
    SwinTransformer='ShiftWindowMSA',
    PyramidVisionTransformer='SpatialReductionAttention',
    PyramidVisionTransformerV2='SpatialReductionAttention',
)
"""Backbones that compute with Python sizes -> their attention
(`upstream/operators/attention.py`).
"""
MULTIPLES = dict(
    YOLOV3Neck=32, YOLOXPAFPN=32, CSPNeXtPAFPN=32, HRNet=32, CTResNetNeck=32, FPN_CARAFE=64, FPG=128,
    PyramidVisionTransformer=32, SummedFeatures=32,
)  # fmt: skip
"""Class of a part -> divisor of the input's sides, by which its maps fit or nothing is cut off (PVT)."""
PATHS = dict(YOLOXPAFPN=3, CSPNeXtPAFPN=3)
"""Neck -> number of maps at which `MULTIPLES` holds; each further map doubles it."""
GRID_SAMPLE_OPSETS = (16, 20)
"""First and last opset with GridSample."""
ROUND_DOWN = ('NASFPN',)
"""Parts that pool: coarse levels have `H // stride` rows (convolutions round up)."""


def detector_of(cfg: Any) -> type | None:
    return registered_class(DETECTORS, cfg.model.get('type'))


def detects(cfg: Any, classes: type | tuple[type, ...]) -> bool:
    detector = detector_of(cfg)
    return detector is not None and issubclass(detector, classes)


def part_cfg(model: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = model.get(key)
    return part if isinstance(part, Mapping) else {}


def without_teacher(model_cfg: Any) -> Any:
    """Return a config's `model`; of a distilled detector (LD, LAD) only the student."""
    if not any(key.startswith('teacher') for key in model_cfg):
        return model_cfg
    detector, student = DETECTORS.get(str(model_cfg.get('type'))), SingleStageDetector
    methods = 'forward', 'forward_test', 'simple_test', 'extract_feat'
    if any(getattr(detector, method, None) is not getattr(student, method) for method in methods):
        return model_cfg
    parameters = [inspect.signature(cls.__init__).parameters for cls in (detector, student)]
    of_distillation = set(parameters[0]) - set(parameters[1])
    content = {
        key: value for key, value in model_cfg.items() if 'teacher' not in key and key not in of_distillation
    }
    return type(model_cfg)(content | dict(type='SingleStageDetector'))


def multiple_of(name: str, settings: Mapping[str, Any]) -> int:
    channels = settings.get('in_channels')
    num_maps = len(channels) if isinstance(channels, list | tuple) else 1
    return MULTIPLES.get(name, 1) << max(num_maps - PATHS.get(name, num_maps), 0)


def multiple(model: Any) -> int:
    parts = [module for module in model.modules() if type(module).__name__ in MULTIPLES]
    return max((multiple_of(type(part).__name__, vars(part)) for part in parts), default=1)


def round_down(model: Any) -> bool:
    return any(type(module).__name__ in ROUND_DOWN for module in model.modules())


def smallest(head: Any, stride: int, rounded: bool = False) -> int:
    """Return the smallest side of an input, pixels, for the largest stride `stride`."""
    from mmcv.ops import DeformConv2d

    layers = [module for module in head.modules() if isinstance(module, DeformConv2d)]
    kernel = max((max(layer.kernel_size) for layer in layers), default=1)
    return max(stride if rounded else 1, (kernel - 1) * stride + 1)


_MAP_SIZES: weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, int], Any]] = weakref.WeakKeyDictionary()
"""Cache: model -> input (H, W) -> (h, w) of each level."""


def map_sizes(
    model: nn.Module,
    network: Callable[[nn.Module, torch.Tensor], Sequence[torch.Tensor]],
    levels: int,
    options: Options,
) -> list[tuple[int, int]]:
    """Return (h, w) of each level at the size of `options`; (0, 0) for dynamic sizes.

    `network` takes the detector and images (1, 3, H, W), and returns maps (1, columns, h, w), all levels of
    one output first. `options` needs only `dynamic`, `height` and `width`.
    """
    if options.dynamic:
        return [(0, 0)] * levels
    sizes = _MAP_SIZES.setdefault(model, {})
    shape = options.height, options.width
    if shape not in sizes:
        image = next(model.parameters()).new_zeros((1, picture_channels(model), *shape))
        with own_forward(model, f'an image of {shape[0]} x {shape[1]}'), torch.no_grad():
            maps = network(model, image)
        sizes[shape] = [tuple(level_map.shape[2:]) for level_map in maps[:levels]]
    return sizes[shape]


def check(model: Mapping[str, Any], options: Options) -> None:
    """Raise UsageError for a size that backbone or neck do not take."""
    parts = []
    for key in ('backbone', 'neck'):
        part = model.get(key) or []
        parts += part if isinstance(part, list | tuple) else [part]
    for part in parts:
        name = str(part.get('type'))
        if options.dynamic and (attention := SIZED_ATTENTION.get(name)):
            module = getattr(BACKBONES.get(name), '__module__', '')
            if not hasattr(sys.modules.get(module), attention):
                raise UsageError(
                    f'--dynamic-export: {name} of {module} computes in Python with the traced size (it has '
                    f"no {attention}, as mmdet's has), so that the graph would be wrong at others; export a "
                    f'fixed --shape'
                )
            if options.exporter == 'dynamo':  # measured: a small Swin is not proven in batches
                raise UsageError(
                    f'--exporter dynamo --dynamic-export: {name} supports any size only with the '
                    'TorchScript exporter; omit --exporter, or export a fixed --shape'
                )
        divisor = multiple_of(name, part)
        if options.height % divisor or options.width % divisor:
            raise UsageError(
                f'--shape {options.height} {options.width}: {name} supports sizes that are multiples of '
                f'{divisor}'
            )


def check_grid_sample(name: str, options: Options) -> None:
    """Raise UsageError for an opset outside of `GRID_SAMPLE_OPSETS`."""
    low, high = GRID_SAMPLE_OPSETS
    if not low <= options.opset <= high:
        raise UsageError(
            f'--opset-version {options.opset}: {name} needs GridSample; expected opset {low} to {high}'
        )


def check_one_image(head: nn.Module, options: Options) -> None:
    """Raise UsageError for batches and dynamic files of guided anchors."""
    if options.batch > 1 or options.dynamic:
        raise UsageError(
            f"{type(head).__name__}: mmdet uses the first image's mask for the whole batch; export with "
            '--batch-size 1 and without --dynamic-export'
        )


def check_tokens(num_tokens: int, options: Options, key: str, num_queries: int) -> None:
    """Raise UsageError for a size with fewer tokens than queries."""
    if num_tokens < num_queries:
        raise UsageError(
            f'--shape {options.height} {options.width}: this size has {num_tokens} tokens for '
            f'{key}={num_queries}; choose a larger size'
        )


def check_max_candidates(options: Options, available: int | None, any_size: bool = False) -> None:
    """Raise UsageError for `--max-candidates` above `available`."""
    if not options.max_candidates:
        return
    option = f'--max-candidates {options.max_candidates}'
    if options.dynamic and not any_size:
        raise UsageError(f'{option}: requires constant shapes; omit --dynamic-export')
    if available is not None and options.max_candidates > available:
        raise UsageError(
            f'{option}: the model has only {available} candidates at {options.height} x {options.width}'
        )


def check_settings(test_cfg: Mapping[str, Any] | None, key: str, needed: Sequence[str], reader: str) -> None:
    """Refuse a `test_cfg` without settings that upstream has no default for."""
    if test_cfg and not isinstance(test_cfg, Mapping):
        raise ConfigError(f'{key}={test_cfg!r}: expected a dict of settings')
    if missing := [name for name in needed if (test_cfg or {}).get(name) is None]:
        raise ConfigError(
            f'{key} has no {", ".join(missing)}, which {reader} requires; expected {", ".join(needed)}'
        )


def check_limit(key: str, limit: Any, available: int) -> None:
    """Refuse a limit that is no whole number from 1 to `available`."""
    if type(limit) is not int or not 0 < limit <= available:  # True is an int, too
        raise ConfigError(
            f'model.test_cfg.{key}={limit}; expected 1 to {available}, the number of candidates'
        )


def check_rotated_limits(test_cfg: Mapping[str, Any], max_key: str) -> None:
    """Refuse a `test_cfg` without limits of mmdet3d's rotated suppression, or for another suppression."""
    positive(max_key, test_cfg.get(max_key))
    number('nms_pre', test_cfg.get('nms_pre', -1), int)
    for key in ('score_thr', 'nms_thr'):
        number(key, test_cfg.get(key), float)
    if not test_cfg.get('use_rotate_nms'):
        raise ConfigError('model.test_cfg.use_rotate_nms: expected True, since NMS compares rotated boxes')


def check_smallest(strides: Iterable[int], options: Options) -> None:
    """Raise UsageError for sizes below the largest stride, pixels."""
    largest = max(strides)
    if min(options.height, options.width) < largest:
        raise UsageError(
            f'--shape {options.height} {options.width}: each side must be at least the largest '
            f'stride of the model, {largest} pixels'
        )


def test_cfg_of(cfg: Any, *, may_be_list: bool = False) -> Any:
    """Return `test_cfg` of a config, which old mmdet has beside the model; default {}."""
    test_cfg = cfg.model.get('test_cfg') or cfg.get('test_cfg') or {}
    is_list = may_be_list and isinstance(test_cfg, list | tuple)
    if not isinstance(test_cfg, Mapping) and not is_list:
        raise ConfigError(f'model.test_cfg={test_cfg!r}: expected a dict of settings')
    return test_cfg


def nms_pre_key(cfg: Any, part: str = '') -> str:
    """Return the key in a config of the candidates per level; `part` is an entry of `test_cfg`, or ''."""
    settings, path = test_cfg_of(cfg), 'model.test_cfg' if cfg.model.get('test_cfg') else 'test_cfg'
    if part:
        settings, path = settings.get(part) or {}, f'{path}.{part}'
    return f'{path}.{"nms_pre" if settings.get("deploy_nms_pre") is None else "deploy_nms_pre"}'


def tested_head(
    cfg: Any,
    key: str,
    test_cfg: Mapping[str, Any] | None,
    build: Callable[[Any], nn.Module] = build_head,
) -> nn.Module:
    """Return the head below a key, built with this `test_cfg`, and with `train_cfg` where it needs it."""
    entry = cfg.model.get(key) or {}
    if not isinstance(entry, Mapping):
        raise ConfigError(f'model.{key}={entry!r}: expected a dict')
    content = dict(copy.deepcopy(entry), train_cfg=None, test_cfg=test_cfg)
    train_cfg = cfg.model.get('train_cfg') or cfg.get('train_cfg')
    try:
        return built_head(copy.deepcopy(content), f'model.{key}', build)
    except ConfigError:
        if not train_cfg:
            raise
        train_cfg = train_cfg.get(dict(rpn_head='rpn', roi_head='rcnn').get(key, ''), train_cfg)
        return built_head(dict(content, train_cfg=copy.deepcopy(train_cfg)), f'model.{key}', build)


def built_head(
    content: Mapping[str, Any], key: str, build: Callable[[Any], nn.Module] = build_head
) -> nn.Module:
    try:
        with warnings.catch_warnings(), undrawn_weights():
            warnings.simplefilter('ignore')  # mmdet 2.28.2 warns of its own code
            return build(dict(content)).eval()
    except Exception as error:
        reason = error if isinstance(error, ConfigError) else f'{type(error).__name__}: {error}'
        raise ConfigError(f'{key} cannot be built: {reason}') from error


def check_box_type(cfg: Any, expected: str) -> None:
    for settings in test_datasets(cfg):
        given = settings.get('box_type_3d', expected)
        if str(given).lower() != expected.lower():
            raise ConfigError(
                f'{cfg.filename}: data.test.box_type_3d={given!r}; expected {expected!r}, the convention '
                "of this model's boxes"
            )
