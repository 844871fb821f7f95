"""Functions of mmcv-full 1.7 in modules of users: those that ONNX has, and a refusal of those it has not.

A graph made by TorchScript holds what a compiled kernel returned for the example, unless the kernel is called
by an autograd function that has a symbolic.

Glossary: B batch, C channels, H, W size of a map, R regions.
"""
# ruff: noqa: ANN001, ANN202 - onnxscript reads the bodies

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from mmdeploy_ext.base.errors import ExportError
from mmdeploy_ext.upstream.compat.import_hook import patched
from mmdeploy_ext.upstream.operators.operator import LIBRARY_OPERATORS, LibraryOperator, Operator, register

KERNELS = 'mmcv._ext'
"""Module of the compiled kernels."""


MIN_OPSET = 16
"""First opset whose RoiAlign has a coordinate mode."""


def _align_maps(
    maps: torch.Tensor,
    boxes: torch.Tensor,
    images: torch.Tensor,
    scale: float,
    height: int,
    width: int,
    sampling_ratio: int,
    mode: str,
) -> torch.Tensor:
    from mmcv.ops import roi_align

    regions = torch.cat([images[:, None].to(boxes.dtype), boxes], dim=1)
    return roi_align(maps, regions, (height, width), scale, sampling_ratio, 'avg', mode == 'half_pixel')


def _align_body(op: Any) -> Callable[..., Any]:
    def body(
        maps,
        boxes,
        images,
        scale: float,
        height: int,
        width: int,
        sampling_ratio: int,
        mode: str,
    ):
        pooled = op.RoiAlign(
            maps,
            boxes,
            images,
            mode='avg',
            coordinate_transformation_mode=mode,
            output_height=height,
            output_width=width,
            sampling_ratio=sampling_ratio,
            spatial_scale=scale,
        )
        return pooled

    return body


ALIGNED_REGIONS = register(
    Operator(
        'AlignedRegions',
        _align_maps,
        inputs=dict(maps='B C H W', boxes='R 4', images='R'),
        outputs=('pooled',),
        example=lambda: (
            torch.rand(1, 3, 16, 16),
            torch.tensor([[0.0, 0.0, 30.0, 20.0], [4.0, 4.0, 60.0, 60.0]]),
            torch.tensor([0, 0]),
        ),
        shapes=lambda maps, boxes, images, scale, height, width, *_: maps.new_empty(
            (boxes.shape[0], maps.shape[1], height, width)
        ),
        body=_align_body,
    )
)
"""`RoIAlignFunction` in a graph of the dynamo exporter."""


def _settings(
    output_size: Any, spatial_scale: float, sampling_ratio: int, pool_mode: str, aligned: bool
) -> tuple[float, int, int, int, str]:
    """Return scale, height, width, sampling ratio and mode of RoiAlign; ExportError: it computes another."""
    if pool_mode != 'avg':
        raise ExportError(
            f"mmcv's RoIAlign with pool_mode={pool_mode!r} pools the largest interpolated sample, ONNX's "
            f"RoiAlign the largest weighted value: use pool_mode='avg'"
        )
    height, width = output_size if isinstance(output_size, tuple | list) else (output_size, output_size)
    mode = 'half_pixel' if aligned else 'output_half_pixel'
    return float(spatial_scale), int(height), int(width), max(int(sampling_ratio), 0), mode


def _align_symbolic(g: Any, maps: Any, rois: Any, *settings: Any) -> Any:
    from torch.onnx import symbolic_helper
    from torch.onnx._internal.torchscript_exporter._globals import GLOBALS

    scale, height, width, sampling_ratio, mode = _settings(*settings)
    attributes = dict(coordinate_transformation_mode_s=mode)
    if GLOBALS.export_onnx_opset_version < MIN_OPSET:
        if mode == 'half_pixel':
            raise ExportError(
                "mmcv's RoIAlign with aligned=True is ONNX's RoiAlign with half_pixel, which needs "
                f'--opset-version {MIN_OPSET} or later'
            )
        attributes = {}
    first = g.op('Constant', value_t=torch.tensor(0))
    return g.op(
        'RoiAlign',
        maps,
        symbolic_helper._slice_helper(g, rois, axes=[1], starts=[1], ends=[5]),
        g.op('Cast', g.op('Gather', rois, first, axis_i=1), to_i=torch.onnx.TensorProtoDataType.INT64),
        mode_s='avg',
        output_height_i=height,
        output_width_i=width,
        sampling_ratio_i=sampling_ratio,
        spatial_scale_f=scale,
        **attributes,
    )


def _align_traced(forward: Callable[..., Any]) -> Callable[..., Any]:
    def traced(ctx: Any, maps: torch.Tensor, rois: torch.Tensor, *settings: Any) -> torch.Tensor:
        if not torch.compiler.is_compiling():
            return forward(ctx, maps, rois, *settings)
        return ALIGNED_REGIONS.overload(maps, rois[:, 1:], rois[:, 0].long(), *_settings(*settings))

    return traced


def _nms_symbolic(
    g: Any,
    bboxes_xyxy: Any,
    scores: Any,
    iou_threshold: float,
    offset: int,
    score_threshold: float,
    max_num: int,
) -> Any:
    from torch.onnx.symbolic_helper import _unsqueeze_helper

    def constant(value: Any) -> Any:
        return g.op('Constant', value_t=torch.as_tensor(value))

    if offset:  # sides are x2 - x1 + 1
        bboxes_xyxy = g.op('Add', bboxes_xyxy, constant([0.0, 0.0, 1.0, 1.0]))
    limit = constant(max_num)
    if max_num <= 0:
        limit = g.op('Gather', g.op('Shape', scores), constant(0), axis_i=0)
    inputs = [_unsqueeze_helper(g, bboxes_xyxy, [0]), _unsqueeze_helper(g, scores, [0, 1]), limit]
    inputs.append(constant([float(iou_threshold)]))
    if score_threshold > 0:  # else mmcv keeps scores of 0 and below, too
        inputs.append(constant([float(score_threshold)]))
    return g.op('Gather', g.op('NonMaxSuppression', *inputs), constant(2), axis_i=1)


def _has_own_samples() -> bool:
    """Whether `point_sample` samples by mmcv's own form for exports, which knows no mode and no padding."""
    return torch.onnx.is_in_onnx_export() and not sys._getframe(1).f_locals['kwargs']


def _checked_regions(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def checked(layer: Any, features: Any, rois: Any) -> Any:
        if _is_traced() and features.shape[0] > 1:
            raise ExportError(
                f'mmcv.ops.SimpleRoIAlign of {int(features.shape[0])} images: the export needs the same '
                'number of regions per image; export it for one image'
            )
        return forward(layer, features, rois)

    return checked


def _refused(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    def refused(*args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1).f_code
        if torch.compiler.is_compiling():
            raise ExportError(
                f'{caller.co_qualname} of mmcv calls its compiled kernel {name}, which the dynamo '
                'exporter cannot trace: use --exporter torchscript, or remove it from the module'
            )
        # what `forward` of an autograd function returns is the result of its symbolic, or is refused
        if _is_traced() and caller.co_name != 'forward':
            raise ExportError(
                f'{caller.co_qualname} of mmcv calls its compiled kernel {name}, whose result for the '
                'example would become a constant: remove it from the module and call it on the outputs'
            )
        return kernel(*args, **kwargs)

    return refused


def _is_traced() -> bool:
    return torch._C._get_tracing_state() is not None or torch.compiler.is_compiling()


@contextlib.contextmanager
def standard_functions() -> Iterator[None]:
    """Export RoIAlign, nms and samples of points as mmcv computes them, and refuse kernels without a graph.

    mmcv's own symbolic of RoIAlign shifts regions and states no mode, whose default shifts them again from
    opset 16 on.
    """
    if KERNELS not in sys.modules:
        yield
        return
    from mmcv.ops import SimpleRoIAlign
    from mmcv.ops.nms import NMSop
    from mmcv.ops.roi_align import RoIAlignFunction

    kernels = {name: value for name, value in vars(sys.modules[KERNELS]).items() if callable(value)}
    refused = {name: _refused(name, kernel) for name, kernel in kernels.items() if not name.startswith('_')}
    aligned = staticmethod(_align_traced(RoIAlignFunction.forward))
    with (
        patched(sys.modules[KERNELS], **refused),
        patched(NMSop, symbolic=staticmethod(_nms_symbolic)),
        patched(RoIAlignFunction, forward=aligned, symbolic=staticmethod(_align_symbolic)),
        patched(sys.modules['mmcv.ops.point_sample'], is_in_onnx_export_without_custom_ops=_has_own_samples),
        patched(SimpleRoIAlign, forward=_checked_regions(SimpleRoIAlign.forward)),
    ):
        yield


LIBRARY_OPERATORS.append(
    LibraryOperator(('functions of mmcv', 'NonMaxSuppression'), 11, (), standard_functions)
)
