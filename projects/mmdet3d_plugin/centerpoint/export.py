"""CenterPoint's family: what is refused, its two graphs, the reference and the runner.

Glossary: C channels, H, W bird's-eye view, K classes of a task, D values per point.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx
import torch

from mmdeploy_ext.contract import options as choices
from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.contract.stages import Graph
from mmdeploy_ext.core.config import test_pipeline
from mmdeploy_ext.core.errors import CheckpointError, ConfigError, UsageError
from mmdeploy_ext.exporting.fold import fuse
from mmdeploy_ext.families.base import BACKBONE, Claim, find_family, register_family
from mmdeploy_ext.families.sequence import SequenceFamily
from mmdeploy_ext.runtime.centerpoint.boxes import NMS_TYPES, BoxRule
from mmdeploy_ext.runtime.frames import Sweep
from mmdeploy_ext.weights.checkpoint import listed
from projects.mmdet3d_plugin.centerpoint import samples
from projects.mmdet3d_plugin.centerpoint.wrapper import DenseHead
from projects.mmdet3d_plugin.common.build import build_without_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

    from mmdeploy_ext.contract.options import Options
    from mmdeploy_ext.inputs.points import VoxelRule
    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.frames import Stepper
    from mmdeploy_ext.sparse.ir import SparseGraph
    from mmdeploy_ext.weights.checkpoint import Checkpoint

ONLY = 'export_scn.py writes the sparse backbone for other engines'
UNITS = dict(reg='cell', height='m', dim='log m', rot='', vel='m/s', heatmap='logit')


class CenterPointFamily(SequenceFamily):
    """mmdet3d's `CenterPoint` of points alone, with `SparseEncoder` and `CenterHead`; it has no memory."""

    name = 'centerpoint'
    exports = 'CenterPoint of points with CenterHead (projects/mmdet3d_plugin/centerpoint/README.md)'
    near = ('CenterHead', 'Anchor3DHead', 'VoxelNet', 'MVX', 'PointPillars', 'TransFusion')
    of_config = "the grid is the config's"
    task = 'points3d'
    used_by: ClassVar[Mapping[str, str]] = {
        '': 'tools/demo/lidar_demo.py SWEEP.bin --config {config} --checkpoint {checkpoint} --onnx {file}'
    }
    options = tuple(
        dataclasses.replace(one, choices=one.choices[:1], hint=ONLY)
        if one in (choices.CONTRACT, choices.LAYERS)
        else one
        for one in choices.STREAM
    )
    files = ('backbone', 'head')
    samples = 'sweeps'
    compared = ()  # the outputs of both files, see `SequenceFamily.compared`

    def claims(self, cfg: Any) -> Claim:
        """See `Family.claims`."""
        return Claim.DETECTOR if cfg.model.get('type') == 'CenterPoint' else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        """See `SequenceFamily.check`."""
        if options.fp16_io:
            raise UsageError('--fp16-io: points and the map between both graphs of CenterPoint stay float32')
        check_model(cfg.filename, cfg.model)
        check_points_loaded(cfg)

    def build(self, cfg: Any) -> nn.Module:
        """See `Family.build`."""
        check_model(cfg.filename, cfg.model)
        model = build_without_weights(cfg)
        find_family(cfg, BACKBONE).settings(cfg, model)  # refuses grids that disagree
        return model

    def load_weights(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        """See `Family.load_weights`; kernels of either spconv layout."""
        from mmdeploy_ext.weights.sparse_checkpoint import load_model

        report = load_model(checkpoint.path, model, 'pts_middle_encoder')
        if report.rest != 'loaded' or report.unused:
            missing = 'none of the head' if report.rest != 'loaded' else 'all of the model'
            raise CheckpointError(
                f'{checkpoint.path}: does not fit the model of the config: it holds {missing}'
                f'{", and unexpected keys " + listed(report.unused) if report.unused else ""}. Use the '
                f'config that this checkpoint was trained with'
            )

    def num_classes(self, model: nn.Module) -> int:
        """See `Family.num_classes`."""
        return sum(model.pts_bbox_head.num_classes)

    def preprocess_rule(self, cfg: Any) -> VoxelRule:
        """See `Family.preprocess_rule`: how points become voxels."""
        check_model(cfg.filename, cfg.model)
        return find_family(cfg, BACKBONE).preprocess_rule(cfg)

    def graphs(self, model: nn.Module, options: Options) -> list[Graph]:
        """See `SequenceFamily.graphs`: the sparse backbone, and the dense head."""
        from mmdeploy_ext.sparse import portable

        sparse = backbone_graph(model)
        backbone = portable.to_onnx(sparse, opset=options.opset)
        contract = starts_single(model_spec(backbone, 'centerpoint/backbone'))
        head, folded = dense_spec(model, sparse.output_shape), fuse(model)
        device = next(model.parameters()).device
        generator = torch.Generator().manual_seed(0)
        bev = torch.rand(sparse.output_shape, generator=generator).to(device)
        return [
            Graph('backbone', None, contract, {}, backbone),
            Graph('head', DenseHead(folded).eval().to(device), head, dict(bev=bev)),
        ]

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        """See `SequenceFamily.postprocess_facts`: a `BoxRule`."""
        return box_rule(model.pts_bbox_head).to_json()

    def generated_sweeps(self, rule: VoxelRule, count: int) -> Iterator[Sweep]:
        """See `SequenceFamily.generated_sweeps`."""
        return samples.generated(rule, count)

    def frame(self, data: Mapping[str, Any]) -> Sweep:
        """See `SequenceFamily.frame`."""
        return samples.sweep(data)

    def result(self, detections: Detections3D) -> dict[str, Any]:
        """See `SequenceFamily.result`."""
        return samples.result(detections)

    def reference(self, model: nn.Module) -> Stepper:
        """See `SequenceFamily.reference`."""
        from projects.mmdet3d_plugin.centerpoint.reference import Reference

        width = int(model.pts_middle_encoder.in_channels)
        return Reference(model, box_rule(model.pts_bbox_head).output_names, width)

    def runner(self, paths: Sequence[str], engine: Mapping[str, Any]) -> Stepper:
        """See `SequenceFamily.runner`."""
        from mmdeploy_ext.runtime.centerpoint.model import CenterPointOnnx

        return CenterPointOnnx(paths, **engine)

    def timed_methods(self, model: nn.Module) -> dict[str, list[tuple[object, str]]]:
        """See `SequenceFamily.timed_methods`."""
        encoders = model.pts_voxel_encoder, model.pts_middle_encoder
        return dict(
            backbone=[(model, 'voxelize'), *((encoder, 'forward') for encoder in encoders)],
            boxes=[(model.pts_bbox_head, 'get_bboxes')],
        )

    def dump_tensors(self, model: nn.Module, taps: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """See `SequenceFamily.dump_tensors`: the points, the bird's-eye view and the head's raw outputs."""
        return {name: value.detach().cpu().numpy() for name, value in taps.items()}

    def dumped_frame(self, tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Sweep:
        """See `SequenceFamily.dumped_frame`."""
        return samples.dumped(tensors, manifest)


def backbone_graph(model: nn.Module) -> SparseGraph:
    """Return the sparse encoder with batch normalisation folded, coordinates (sample, z, y, x)."""
    from mmdeploy_ext.exporting.sparse.trace import trace
    from mmdeploy_ext.sparse.fold import fold

    encoder = model.pts_middle_encoder
    shape = tuple(int(size) for size in encoder.sparse_shape)
    return fold(trace(encoder, order='zyx', spatial_shape=shape, in_channels=int(encoder.in_channels)))


def model_spec(model: onnx.ModelProto, name: str) -> GraphSpec:
    """Return the contract that a finished graph has."""

    def tensors(values: Any) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                value.name,
                np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)).name,
                tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim),
            )
            for value in values
        )

    return GraphSpec(name, tensors(model.graph.input), tensors(model.graph.output))


def starts_single(spec: GraphSpec) -> GraphSpec:
    """Return a contract whose inputs are coordinates: float32 up to the first kernel in a float16 file."""
    inputs = tuple(dataclasses.replace(tensor, single=True) for tensor in spec.inputs)
    return dataclasses.replace(spec, inputs=inputs)


def dense_spec(model: nn.Module, bev_shape: tuple[int, ...]) -> GraphSpec:
    """Return the contract of `DenseHead`.

    Args:
        model: a `CenterPoint`.
        bev_shape: (1, C, H, W) of the backbone's result.
    """
    device = next(model.parameters()).device
    with torch.no_grad():
        found = DenseHead(model)(torch.zeros(bev_shape, device=device))
    outputs = []
    for name, tensor in zip(box_rule(model.pts_bbox_head).output_names, found, strict=True):
        kind, task = name.rsplit('_', 1)
        meaning = f'{kind} of task {task}'
        outputs.append(TensorSpec(name, 'float32', tuple(tensor.shape), meaning, UNITS[kind]))
    bev = TensorSpec('bev', 'float32', tuple(bev_shape), "bird's-eye view of the sparse backbone")
    return GraphSpec('centerpoint/head', (bev,), tuple(outputs))


def box_rule(head: nn.Module) -> BoxRule:
    """Return how a `CenterHead` decodes."""
    coder, test = head.bbox_coder, head.test_cfg
    return BoxRule(
        num_classes=tuple(int(count) for count in head.num_classes),
        voxel_size=_floats(coder.voxel_size[:2]),
        pc_origin=_floats(coder.pc_range[:2]),
        out_size_factor=int(coder.out_size_factor),
        max_num=int(coder.max_num),
        score_threshold=coder.score_threshold,
        post_center_range=_floats(coder.post_center_range),
        norm_bbox=bool(head.norm_bbox),
        with_velocity=bool(head.with_velocity),
        nms_type=str(test['nms_type']),
        nms_thr=float(test.get('nms_thr') or 0.0),
        nms_score_threshold=float(test.get('score_threshold') or 0.0),
        pre_max_size=test.get('pre_max_size'),
        post_max_size=test.get('post_max_size'),
        min_radius=_floats(test.get('min_radius') or ()),
        post_center_limit_range=_floats(test.get('post_center_limit_range') or ()),
    )


def check_model(filename: str, model: Mapping[str, Any]) -> None:
    """Refuse detectors whose parts are not exported.

    Raises:
        ConfigError: names the key.
    """
    wanted = dict(
        pts_voxel_encoder=('HardSimpleVFE',),
        pts_middle_encoder=('SparseEncoder',),
        pts_bbox_head=('CenterHead',),
    )
    for key, allowed in wanted.items():
        kind = (model.get(key) or {}).get('type')
        if kind not in allowed:
            raise ConfigError(
                f'{filename}: model.{key}.type={kind!r}; CenterPoint is exported with {" or ".join(allowed)}'
            )
    test = (model.get('test_cfg') or {}).get('pts') or {}
    if test.get('nms_type') not in NMS_TYPES:
        raise ConfigError(
            f'{filename}: model.test_cfg.pts.nms_type={test.get("nms_type")!r}, expected '
            f'{" or ".join(NMS_TYPES)}'
        )
    for key in ('img_backbone', 'pts_fusion_layer'):
        if model.get(key):
            raise ConfigError(f'{filename}: model.{key}: CenterPoint is exported for points alone')


def check_points_loaded(cfg: Any) -> None:
    """Refuse a test pipeline that loads points of another width than the model takes.

    Raises:
        ConfigError: names the key.
    """
    wanted = int(cfg.model.pts_middle_encoder.in_channels)
    for step in test_pipeline(cfg):
        if step.get('type') == 'LoadPointsFromFile':
            used = step.get('use_dim', [0, 1, 2])
            width = used if isinstance(used, int) else len(used)
            if width != wanted:
                raise ConfigError(
                    f'{cfg.filename}: use_dim={used} of LoadPointsFromFile gives {width} values per point, '
                    f'model.pts_middle_encoder.in_channels is {wanted}'
                )


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


register_family(CenterPointFamily())
