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
from onnx import TensorProto

from mm2onnx_driving.autoware.nodes import BEVFUSION_LIDAR
from mm2onnx_driving.bevfusion.runtime import (
    FAMILY,
    Coder,
    FusionRuntime,
    checked_inputs,
    filter_boxes,
    suppress,
)
from mmdeploy_ext.base.errors import EngineError, ExportError, ModelFileError
from mmdeploy_ext.runtime.exported import check_finite, files_by_name
from mmdeploy_ext.runtime.frames import FusedFrame, StepResult
from mmdeploy_ext.runtime.preprocess.points import pillars
from mmdeploy_ext.runtime.sparse.engine import gathered
from mmdeploy_ext.runtime.sparse.ir import Add, Relu, Reshape, ScatterDense, SparseConvolution, Transpose
from mmdeploy_ext.runtime.sparse.rulebook import pairs
from mmdeploy_ext.spec.metadata import read_metadata

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx
    from onnx.reference import ReferenceEvaluator

    from mmdeploy_ext.exporting.sparse.libspconv import NodeWriter
    from mmdeploy_ext.runtime.detections3d import Detections3D
    from mmdeploy_ext.runtime.exported import Paths
    from mmdeploy_ext.runtime.sparse.ir import SparseGraph


# Writer of the sparse graph for Autoware's plug-ins of spconv: pairs of sites, and products over them.
#
# Two operators of the domain `autoware` beside standard ones; weights are (O, k0, k1, k2, I) float32. V
# voxels,
# C, I, O channels; H, W of the bird's-eye view; d0, d1, d2 sizes of the grid.
#
# Source: autoware_universe 5e12a711, autoware_tensorrt_plugins (names, inputs, outputs, attributes; facts,
# no
# code); spconv 2.3.8, `core.ConvAlgo`.


DOMAIN, VERSION = 'autoware', 1
PAIRS, PRODUCTS = 'GetIndicePairsImplicitGemm', 'ImplicitGemm'
ONE_MASK = 1
"""`ConvAlgo.MaskImplicitGemm`: one mask per site."""


class ImplicitGemm:
    """Writes the nodes of one sparse graph into an ONNX graph; call `write` once."""

    def __init__(self, graph: SparseGraph, writer: NodeWriter) -> None:
        """The graph is folded, with rulebooks by `plan.name_rulebooks`."""
        self.graph, self.writer = graph, writer
        self._values: dict[str, str] = {}  # tensor id of the graph -> name of its values
        self._sites: dict[str, str] = {}  # tensor id of the graph -> name of its sites
        self._pairs: dict[tuple[str, str], list[str]] = {}  # see `_pairs_of`

    def write(self, sites: str, features: str) -> str:
        """Add all nodes; return the name of the result, (1, C, H, W) float32.

        `sites` names (V, 4) int32, sample 0 and axes in the graph's order; `features` (V, C) float32.
        ExportError: a node that the plug-ins lack.
        """
        self._values['0'], self._sites['0'] = features, sites
        for node in self.graph.nodes:
            inputs = [self._values[name] for name in node.inputs]
            self._sites[node.output] = self._sites[node.inputs[0]]
            name, op = f'sparse/{node.name}', self.writer.op
            if isinstance(node, SparseConvolution):
                output = self._convolution(node, inputs[0], name)
            elif isinstance(node, Add) and len({self._sites[tensor] for tensor in node.inputs}) > 1:
                raise ExportError(
                    f'{node.name} ({node.module}): adds tensors of two convolutions that create their own '
                    'sites; the plug-ins can return them in different orders'
                )
            elif isinstance(node, Add | Relu):
                output = op(node.op_type, inputs, name)
            elif isinstance(node, ScatterDense):
                output = self._scatter(node, inputs[0], name)
            elif isinstance(node, Transpose):
                output = op('Transpose', inputs, name, perm=list(node.dims))
            elif isinstance(node, Reshape):
                output = op('Reshape', [*inputs, self.writer.integers(*node.dims)], name)
            else:
                raise ExportError(
                    f'{node.name} ({node.module}): {node.op_type} is not folded; fold the graph'
                )
            self._values[node.output] = output
        return self._values[self.graph.output]

    def _convolution(self, node: SparseConvolution, features: str, name: str) -> str:
        if node.inverse or node.transposed or node.groups != 1:
            raise ExportError(
                f'{node.name} ({node.module}): an inverse, transposed or grouped convolution, which the '
                f'plug-ins of Autoware do not have'
            )
        sites, *pairs = self._pairs_of(node, name)
        self._sites[node.output] = sites
        weight = self.writer.constant(f'{name}.weight', np.float32(node.weight))
        is_last = node.bias is None and node.activation == 'None'
        output = self.writer.op(
            PRODUCTS,
            [features, weight, *pairs],
            name if is_last else f'{name}.product',
            domain=DOMAIN,
            act_alpha=0.0,
            act_beta=0.0,
            output_add_scale=0.0,
            output_scale=1.0,
            is_subm=int(node.subm),
            is_train=0,
        )
        if node.bias is not None:
            bias = self.writer.constant(f'{name}.bias', np.float32(node.bias))
            is_last = node.activation == 'None'
            output = self.writer.op('Add', [output, bias], name if is_last else f'{name}.sum')
        return output if node.activation == 'None' else self.writer.op('Relu', [output], name)

    def _pairs_of(self, node: SparseConvolution, name: str) -> list[str]:
        sites = self._sites[node.inputs[0]]
        key = sites, (node.rulebook or name) if node.subm else name
        if key not in self._pairs:
            triples = dict(
                ksize=node.kernel_size,
                stride=node.stride,
                padding=node.padding,
                dilation=node.dilation,
                out_padding=node.output_padding,
                spatial_shape=node.input_spatial_shape,
            )
            outputs = [f'{name}.{part}' for part in ('sites', 'pairs', 'masks', 'order', 'count')]
            self.writer.op(
                PAIRS,
                [sites],
                outputs,
                domain=DOMAIN,
                algo=ONE_MASK,
                batch_size=1,
                is_train=0,
                subm=int(node.subm),
                transpose=0,
                do_sort=1,  # the plug-in's default, which nodes since pull request 12631 want to be stated
                **{name: [int(value) for value in triple] for name, triple in triples.items()},
            )
            self._pairs[key] = outputs[:4]
        pairs = self._pairs[key]
        return [sites, *pairs[1:]] if node.subm else pairs

    def _scatter(self, node: ScatterDense, features: str, name: str) -> str:
        op, integers = self.writer.op, self.writer.integers
        channels = node.output_shape[1]
        shape = integers(*node.spatial_shape, channels)
        zeros = op('ConstantOfShape', [shape], f'{name}.zeros')
        wide = op('Cast', [self._sites[node.inputs[0]]], f'{name}.wide', to=TensorProto.INT64)
        places = op('Slice', [wide, integers(1), integers(4), integers(1)], f'{name}.places')
        filled = op('ScatterND', [zeros, places, features], f'{name}.filled')
        first = op('Transpose', [filled], f'{name}.first', perm=[3, 0, 1, 2])
        return op('Reshape', [first, integers(*node.output_shape)], name)


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
