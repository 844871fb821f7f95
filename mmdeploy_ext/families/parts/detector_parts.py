"""Parts of detectors: heads as they are tested, backbones and necks that do not take every size."""

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mmdet.models.builder import DETECTORS, build_head
from mmdet.models.detectors import SingleStageDetector
from torch import nn

from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.core.errors import ConfigError, UsageError

FIXED_SIZE = dict(
    SwinTransformer='computes its window masks from the traced size',
    PyramidVisionTransformer='resizes its position embedding to the traced size',
    PyramidVisionTransformerV2='reshapes its tokens by the traced size',
)
"""Parts of mmdet that decide in Python, by the size of the input -> what they do. A dynamic graph of them
would be wrong at other sizes (measured: a Swin-T traced at 256x384 is 0.4 off at 320x416)."""
MULTIPLES = dict(
    YOLOV3Neck=32, YOLOXPAFPN=32, CSPNeXtPAFPN=32, HRNet=32, CTResNetNeck=32, FPN_CARAFE=64, FPG=128
)
"""Parts that add or concatenate maps which fit only where the sides of the input are multiples of this."""
PATHS = dict(YOLOXPAFPN=3, CSPNeXtPAFPN=3)
"""Necks that take any number of maps -> the number that `MULTIPLES` is of; each further one doubles it."""
GRID_SAMPLE_OPSETS = (16, 20)
"""GridSample exists from 16 on; the default stays below 20, whose GridSample TensorRT 10 gets wrong."""
ROUND_DOWN = ('NASFPN',)
"""Parts whose coarse levels have `H // stride` rows, which pooling makes, where a convolution rounds up."""


def detector_of(cfg: Any) -> type | None:
    """Return the class of the detector of a config; None of one that is not registered."""
    return DETECTORS.get(cfg.model.get('type') or '')


def detects(cfg: Any, kinds: type | tuple[type, ...]) -> bool:
    """Return whether the detector of a config is registered, and of some classes."""
    detector = detector_of(cfg)
    return detector is not None and issubclass(detector, kinds)


def part_cfg(model: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return a part of the config's `model`; nothing where there is none, or a list of several."""
    part = model.get(key)
    return part if isinstance(part, Mapping) else {}


def without_teacher(model_cfg: Any) -> Any:
    """Return the `model` of a distilled detector (LD, LAD) as its student alone; others as they are.

    Of a teacher nothing is read: its config is a path of the working directory, its checkpoint a URL.
    """
    if not any(key.startswith('teacher') for key in model_cfg) or _tests_otherwise(model_cfg['type']):
        return model_cfg
    others = {key: value for key, value in model_cfg.items() if 'teacher' not in key}
    return type(model_cfg)(others | dict(type='SingleStageDetector'))


def _tests_otherwise(name: str) -> bool:
    """Return whether a registered detector runs images otherwise than `SingleStageDetector` does."""
    kind, student = DETECTORS.get(name), SingleStageDetector
    methods = 'forward', 'forward_test', 'simple_test', 'extract_feat'
    return any(getattr(kind, method) is not getattr(student, method) for method in methods)


def step_of(name: str, maps: int) -> int:
    """Return what the sides of the input have to be multiples of for a part that takes so many maps."""
    return MULTIPLES.get(name, 1) << max(maps - PATHS.get(name, maps), 0)


def parts_of(model: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the configs of backbone and necks."""
    for key in ('backbone', 'neck'):
        part = model.get(key) or ()
        yield from part if isinstance(part, list | tuple) else [part]


def multiple(model: Any) -> int:
    """Return what the sides of the input have to be multiples of, for a built detector."""
    found = [module for module in model.modules() if type(module).__name__ in MULTIPLES]
    return max((step_of(type(part).__name__, _maps(vars(part))) for part in found), default=1)


def _maps(part: Mapping[str, Any]) -> int:
    """Return how many maps a neck takes, by its settings."""
    channels = part.get('in_channels')
    return len(channels) if isinstance(channels, list | tuple) else 1


def round_down(model: Any) -> bool:
    """Return whether a built detector has levels whose sizes are rounded down."""
    return any(type(module).__name__ in ROUND_DOWN for module in model.modules())


def smallest(head: Any, stride: int, rounded: bool = False) -> int:
    """Return the smallest side of an input, pixels, for a built head whose largest stride is `stride`.

    mmcv's first deformable convolution refuses maps that are smaller than its kernel; a level whose size is
    rounded down (`rounded`, see `round_down`) has none below its stride.
    """
    from mmcv.ops import DeformConv2d

    kernels = [max(one.kernel_size) for one in head.modules() if isinstance(one, DeformConv2d)]
    return max(stride if rounded else 1, (max(kernels) - 1) * stride + 1 if kernels else 1)


def check(model: Mapping[str, Any], options: Options) -> None:
    """Refuse (UsageError) a size that a part of the config's `model` does not take, or a dynamic one."""
    for part in parts_of(model):
        name = str(part.get('type'))
        if options.dynamic and name in FIXED_SIZE:
            raise UsageError(
                f'--dynamic-export: {name} {FIXED_SIZE[name]}, so that the graph would be wrong at others; '
                f'export a fixed --shape'
            )
        step = step_of(name, _maps(part))
        if options.height % step or options.width % step:
            raise UsageError(
                f'--shape {options.height} {options.width}: {name} takes sizes that are multiples of {step}'
            )


def check_grid_sample(name: str, options: Options) -> None:
    """Refuse (UsageError) an opset without GridSample, or with one that TensorRT 10 gets wrong."""
    low, high = GRID_SAMPLE_OPSETS
    if not low <= options.opset <= high:
        raise UsageError(
            f'--opset-version {options.opset}: {name} needs GridSample, which ONNX has since opset {low}; '
            f'expected {low} to {high}'
        )


def check_one_image(head: nn.Module, options: Options) -> None:
    """Refuse (UsageError) batches for a head that looks at visible places alone, those of guided anchors."""
    if options.batch > 1 or options.dynamic:
        raise UsageError(
            f'{type(head).__name__}: mmdet takes the mask of the first image for all of a batch; export '
            f'it with --batch-size 1 and without --dynamic-export'
        )


def check_tokens(there: int, options: Options, name: str, wanted: int) -> None:
    """Refuse (UsageError) a size with fewer tokens than become queries, which `name` of the config says."""
    if there < wanted:
        raise UsageError(
            f'--shape {options.height} {options.width}: gives {there} tokens for {name}={wanted}; choose a '
            f'larger size'
        )


def check_limit(name: str, most: Any, there: int) -> None:
    """Refuse (ConfigError) a number of results that there is not."""
    if not isinstance(most, int) or not 0 < most <= there:
        raise ConfigError(f'model.test_cfg.{name}={most}; expected 1 to {there}, as many as there are')


def check_smallest(strides: Iterable[int], options: Options) -> None:
    """Refuse (UsageError) sizes below the largest stride; strides are in pixels."""
    largest = max(strides)
    if min(options.height, options.width) < largest:
        raise UsageError(
            f'--shape {options.height} {options.width}: each side has to be at least the largest '
            f'stride of the model, {largest} pixels'
        )


def test_cfg_of(cfg: Any) -> Any:
    """Return what a config says of tests; older ones say it beside the model."""
    return cfg.model.get('test_cfg') or cfg.get('test_cfg') or {}


def tested_head(cfg: Any, key: str, test_cfg: Mapping[str, Any] | None) -> nn.Module:
    """Return the head below a key of a config's model as it is tested; see `built_head`."""
    content = dict(copy.deepcopy(cfg.model.get(key) or {}), train_cfg=None, test_cfg=test_cfg)
    return built_head(content, f'model.{key}')


def built_head(content: Mapping[str, Any], where: str) -> nn.Module:
    """Return a head of mmdet, in evaluation mode; ConfigError says `where` one cannot be built, and why."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # mmdet 2.28.2 warns of its own code
            return build_head(dict(content)).eval()
    except Exception as error:
        why = error if isinstance(error, ConfigError) else f'{type(error).__name__}: {error}'
        raise ConfigError(f'{where} cannot be built: {why}') from error
