"""The path of bevfusion from points to objects, LiDAR alone, without Autoware: its file in numpy and ORT.

    runtime = AutowareBEVFusion('work_dirs/autoware')      # written with --contract autoware
    detections = runtime.step(FusedFrame(points)).detections

Source: autoware_universe 5e12a711, autoware_bevfusion, lib/preprocess/preprocess_kernel.cu and
lib/postprocess/postprocess_kernel.cu:50-121 (formulas and defaults, no code).

Glossary: P points, F values of a point, Q queries; in the plug-ins W sites that a convolution writes, K
offsets of its kernel, O output channels.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from mm2onnx_driving.autoware.nodes import BEVFUSION_LIDAR
from mm2onnx_driving.bevfusion.facts import Coder
from mm2onnx_driving.bevfusion.runtime import FAMILY, FusionRuntime, checked_inputs, filter_boxes, suppress
from mmdeploy_ext.base.errors import EngineError, ModelFileError
from mmdeploy_ext.runtime.exported import check_finite, files_by_name
from mmdeploy_ext.runtime.frames import FusedFrame, StepResult
from mmdeploy_ext.runtime.preprocess.points import pillars
from mmdeploy_ext.runtime.sparse.engine import gathered
from mmdeploy_ext.runtime.sparse.rulebook import pairs
from mmdeploy_ext.spec.metadata import read_metadata

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx
    from onnx.reference import ReferenceEvaluator

    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.exported import Paths

ENGINE, PROVIDERS = 'OnnxRuntimeBackend', ('CPUExecutionProvider',)
"""Engine and providers of the graph behind the plug-ins."""
GRAPHS = (LIDAR,) = BEVFUSION_LIDAR.graphs
"""The `form` in the metadata of each file of an export."""
BEV = 'bev'
"""The tensor between the sparse encoder and the standard operators."""


class AutowareBEVFusion(FusionRuntime):
    """The file of bevfusion, LiDAR alone: a `runtime.frames.Stepper` of sweeps, without a memory.

    `encoder` and `head` run the file's halves; `seconds` has the time of each, voxels included.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        engine: str = ENGINE,
        providers: Sequence[str] = PROVIDERS,
        threads: int = 0,
        graph_optimization: str = 'all',
    ) -> None:
        import onnx

        from mmdeploy_ext.graphs.run import Runner

        super().__init__()
        if engine != ENGINE or tuple(providers) != PROVIDERS:
            raise EngineError(
                f'{engine}: has plug-ins of Autoware, which run here in numpy; the rest needs {ENGINE}'
            )
        path = files_by_name(paths, GRAPHS)[LIDAR]
        self.metadata = read_metadata(path)
        self.metadata.require(path, FAMILY, GRAPHS)
        encoder, head = halves(onnx.load(path), BEV, str(path))
        self.encoder = evaluator(encoder)
        self.head = Runner(head, optimization=graph_optimization, threads=threads)
        self.seconds = dict.fromkeys(('encoder', 'head'), 0.0)

    def step(self, frame: FusedFrame) -> StepResult:
        """Detect in the points (P, F) of a frame."""
        points, _ = checked_inputs(frame, self.rule)
        start = time.perf_counter()
        voxels, counts, cells = pillars(points, self.rule.voxels)
        zyx = cells[:, 1:] if self.rule.voxels.order == 'zyx' else cells[:, :0:-1]
        feeds = dict(voxels=voxels, num_points_per_voxel=counts, coors=np.ascontiguousarray(zyx))
        (bev,) = self.encoder.run([BEV], feeds)
        start = self.passed('encoder', start)
        outputs = self.head.run({BEV: bev})
        check_finite(outputs, frame.name or 'frame')
        self.passed('head', start)
        return StepResult({BEV: bev, **outputs}, self.boxes_of(outputs))

    def boxes_of(self, outputs: Mapping[str, np.ndarray]) -> Detections3D:
        """Return the boxes that the suppression of the file's metadata keeps, best first."""
        facts = self.metadata.postprocess
        return suppress(detections(outputs, facts.coder), facts.nms)


def halves(model: onnx.ModelProto, tensor: str, name: str) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Return the part of a model up to a tensor, and the part from it on."""
    from onnx import ValueInfoProto

    from mmdeploy_ext.graphs.io.index import Index
    from mmdeploy_ext.graphs.part import part

    index = Index(model)
    later = index.ancestors(index.outputs, [tensor])
    if index.producer(tensor) is None or index.leaves(later, [tensor]):
        raise ModelFileError(
            f'{name}: {tensor!r}, the map of the sparse encoder, does not divide the graph in two; '
            'export it again'
        )
    typed = [value for value in model.graph.value_info if value.name == tensor]
    first = part(index, index.ancestors([tensor]), model.graph.input, [ValueInfoProto(name=tensor)])
    return first, part(index, later, typed, model.graph.output)


def detections(outputs: Mapping[str, np.ndarray], coder: Coder) -> Detections3D:
    """Return the boxes of the file's outputs within the model's own limits, best first.

    `bbox_pred` (10, Q): centre x, y in cells from the corner of the map and z in metres, logarithms of
    length, width and height in metres, sine and cosine of `Detections3D`'s yaw, from x counter-clockwise, and
    velocity x, y in m/s; `score` (Q,) in 0..1; `label_pred` (Q,).
    """
    values, sizes = outputs['bbox_pred'], np.exp(outputs['bbox_pred'][3:6])
    step = np.float32(coder.voxel_size[:2]) * np.float32(coder.out_size_factor)
    place = values[:2] * step[:, None] + np.float32(coder.pc_range[:2])[:, None]
    bottom = values[2:3] - sizes[2:] * np.float32(0.5)
    yaw = np.arctan2(values[6:7], values[7:8])
    boxes = np.concatenate([place, bottom, sizes, yaw, values[8:]]).T
    return filter_boxes(boxes, outputs['score'], outputs['label_pred'], coder)


def evaluator(model: onnx.ModelProto) -> ReferenceEvaluator:
    """Return an evaluator in numpy with spconv's plug-ins; pairs are (K, W) rows, -1 for none."""
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    from mm2onnx_driving.bevfusion.targets.implicit_gemm import DOMAIN, PAIRS, PRODUCTS

    def pairs_of(self: Any, indices: np.ndarray, **attributes: Any) -> tuple[np.ndarray, ...]:
        geometry = (attributes[name] for name in ('ksize', 'stride', 'padding', 'dilation'))
        shape, subm = attributes['spatial_shape'], bool(attributes['subm'])
        sites, table = pairs(indices, shape, subm, *geometry)
        table = np.where(table < len(indices), table, -1).astype(np.int32)
        unread = np.zeros(len(sites), np.int32)
        return sites, table, unread[:, None], unread, np.array(len(sites), np.int32)

    def products(
        self: Any,
        features: np.ndarray,
        filters: np.ndarray,
        table: np.ndarray,
        masks: np.ndarray,
        order: np.ndarray,
        **_: Any,
    ) -> tuple[np.ndarray]:
        return (gathered(features, filters, np.where(table < 0, len(features), table)),)

    kernels = {PAIRS: pairs_of, PRODUCTS: products}
    operators = [
        type(name, (OpRun,), dict(op_domain=DOMAIN, _run=kernel)) for name, kernel in kernels.items()
    ]
    return ReferenceEvaluator(model, new_ops=operators)
