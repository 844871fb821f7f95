"""Ranges (amax) of a sparse graph's quantisers, in a JSON file that people edit and reuse. Needs numpy only.

A symmetric 8-bit quantiser with range `amax` has the scale amax/127: one range per tensor for the input of a
convolution or an addition (whose two inputs share it), one per output channel for a convolution's weight.
Ranges belong to node names, which are the same in both coordinate orders; so are the values. O is the number
of output channels of a convolution.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from mmdeploy_ext.core.commands import tool
from mmdeploy_ext.core.errors import CheckpointError, UsageError, check_distinct
from mmdeploy_ext.core.files import atomic_path, read_json
from mmdeploy_ext.core.typed_json import Bounds, JsonDataclass, Mismatch, optional, read
from mmdeploy_ext.sparse.ir import Add, BatchNorm, Relu, SparseConvolution

if TYPE_CHECKING:
    import os

    from mmdeploy_ext.sparse.ir import Node, SparseGraph

FORMAT, VERSION = 'mm2onnx-scn-ranges', 1
"""Values of the keys `format` and `version` of a file of ranges."""
NORM_TOLERANCE = 1e-3
"""Relative difference of a kernel's norm that is still the same kernel: folding in fp16 moves it by 1e-4."""
TEXTS = ('calibrator', 'source', 'graph_sha256', 'checkpoint_sha256')
"""Keys of the file whose values are texts."""
Amax = Annotated[float, Bounds(above=0)]


@dataclasses.dataclass(frozen=True)
class NodeRange(JsonDataclass):
    """Ranges of one node.

    Attributes:
        module: path of the module that it comes from; for the reader of the file.
        input_amax: amax of its input, or None if it is unknown.
        weight_amax: (O,) per output channel; None for an addition, or if it is unknown.
        weight_norm: Frobenius norm of the folded kernel that the ranges were made for; None for an addition,
            or if it is unknown: it is not compared then.
    """

    module: str = optional('')
    input_amax: Amax | None = optional()
    weight_amax: tuple[Amax, ...] | None = optional()
    weight_norm: float | None = optional()

    def to_json(self) -> dict[str, Any]:
        """Return field -> value, without `weight_amax` and `weight_norm` if they are None."""
        return {'module': self.module, 'input_amax': self.input_amax, **super().to_json()}


@dataclasses.dataclass(frozen=True)
class Ranges:
    """Ranges of a whole graph.

    Attributes:
        nodes: node name -> ranges.
        calibrator: method that chose the inputs' ranges: 'mse', 'percentile 99.99', 'max', 'checkpoint', ...;
            '' if it is unknown.
        source: samples that they were measured on, in words.
        batches: number of sweeps that were measured, 0 if none was or it is unknown.
        graph_sha256: `graph_digest` of the graph; '' if it is unknown, then it is not compared.
        checkpoint_sha256: of the checkpoint of the graph, '' if it is unknown; for messages.
        path: path of the file that they were read from, or ''; not written.
    """

    nodes: Mapping[str, NodeRange]
    calibrator: str
    source: str
    batches: int
    graph_sha256: str
    checkpoint_sha256: str = ''
    path: str = ''

    def _nodes_json(self) -> dict[str, Any]:
        return {name: node.to_json() for name, node in self.nodes.items()}

    @property
    def title(self) -> str:
        """The name of these ranges in messages."""
        return self.path or f'ranges of {self.source}'

    def input_amax(self, name: str) -> float:
        """Return the range of the input of the node `name`; UsageError if it is missing."""
        return self._amax(name, 'input_amax')

    def weight_amax(self, name: str) -> np.ndarray:
        """Return (O,) float32, the ranges of the channels of the convolution `name`; UsageError: missing."""
        return np.array(self._amax(name, 'weight_amax'), np.float32)

    def _amax(self, name: str, field: str) -> Any:
        value = getattr(self.nodes.get(name), field, None)
        if value is None:
            raise UsageError(_missing_text(self.title, [f'{name}.{field}']))
        return value

    def missing(self, graph: SparseGraph) -> list[str]:
        """Return the ranges that the graph needs and that are missing, e.g. ['conv3.input_amax']; [] if none.

        UsageError: `graph` is not folded.
        """
        missing = []
        for node in quantised(graph):
            fields = ['input_amax']
            if isinstance(node, SparseConvolution):
                fields.append('weight_amax')
            for field in fields:
                if getattr(self.nodes.get(node.name), field, None) is None:
                    missing.append(f'{node.name}.{field}')
        return missing

    def check(self, graph: SparseGraph, checkpoint_sha256: str = '') -> None:
        """Refuse ranges that are not this graph's, or not complete.

        Args:
            graph: folded, in either coordinate order.
            checkpoint_sha256: of the checkpoint that the graph comes from, '' if it is unknown.

        Raises:
            UsageError: a node is unknown, another kernel, another graph, or a range is missing.
        """
        named = {node.name: node for node in quantised(graph)}
        for name in self.nodes:
            if name not in named:
                raise UsageError(
                    f'{self.title}: has ranges of {name!r}, no convolution or addition of this graph '
                    f'({", ".join(list(named)[:4])}, ...); correct the name, or calibrate this model'
                )
        if missing := self.missing(graph):
            raise UsageError(_missing_text(self.title, missing))
        digest = graph_digest(graph)
        if self.graph_sha256 and self.graph_sha256 != digest:
            raise UsageError(
                f'{self.title}: are ranges of another network (graph {self.graph_sha256[:12]}, expected '
                f'{digest[:12]}); calibrate this one'
            )
        for node in graph.convolutions():
            self._check_kernel(node, checkpoint_sha256)

    def _check_kernel(self, node: SparseConvolution, checkpoint_sha256: str) -> None:
        ranges = self.nodes[node.name]
        if len(ranges.weight_amax or ()) != node.out_channels:
            raise UsageError(
                f'{self.title}: {node.name}.weight_amax has {len(ranges.weight_amax or ())} values, expected '
                f'{node.out_channels}, one per output channel'
            )
        norm = weight_norm(node)
        if ranges.weight_norm is None or abs(ranges.weight_norm - norm) <= NORM_TOLERANCE * max(norm, 1e-12):
            return
        hashes = ''
        if checkpoint_sha256 and self.checkpoint_sha256:
            hashes = f' (checkpoint {self.checkpoint_sha256[:12]}, this one is {checkpoint_sha256[:12]})'
        raise UsageError(
            f'{self.title}: are ranges of other weights{hashes}: {node.name} ({node.module}) has the norm '
            f'{norm:.6g}, expected {ranges.weight_norm:.6g}; calibrate this checkpoint'
        )

    def half(self) -> Ranges:
        """Return the ranges rounded to fp16, as the reference does for BEVFusion and not for CenterPoint.

        A range that becomes 0 or infinite by it is a UsageError: fp16 holds 6e-8 to 65504.

        Source: ALGORITHM.md section 5: `model.half()` casts BEVFusion's amax buffers.
        """

        def rounded(amax: float) -> float:
            fp16_amax = float(np.float16(amax)) if amax < 65520 else math.inf
            if not 0 < fp16_amax < math.inf:
                raise UsageError(
                    f'the range {amax!r} does not fit into fp16 (6e-8 to 65504); keep the ranges in fp32'
                )
            return fp16_amax

        nodes = {}
        for name, node in self.nodes.items():
            amax = None if node.input_amax is None else rounded(node.input_amax)
            weights = None if node.weight_amax is None else tuple(map(rounded, node.weight_amax))
            nodes[name] = dataclasses.replace(node, input_amax=amax, weight_amax=weights)
        return dataclasses.replace(self, nodes=nodes)

    def to_json(self) -> dict[str, Any]:
        """Return plain data, for `from_json`: format and version, attributes, and `nodes`, name -> ranges."""
        head = {'format': FORMAT, 'version': VERSION}
        head |= {key: value for key, value in vars(self).items() if key not in ('nodes', 'path')}
        return dict(head, nodes=self._nodes_json())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON, atomically: one line per key, so that it can be edited.

        A missing folder is made. Mm2OnnxError: it cannot be written.
        """
        content = self.to_json()
        nodes = content.pop('nodes')
        blocks = [f'  {json.dumps(name)}: {{\n{_lines(node, 3)}\n  }}' for name, node in nodes.items()]
        text = '\n'.join(['{', f'{_lines(content, 1)},', ' "nodes": {', ',\n'.join(blocks), ' }', '}'])
        with atomic_path(path) as temporary:
            temporary.write_text(text + '\n', encoding='utf-8')

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Ranges:
        """Read a file that `save` wrote, edited or not.

        UsageError: it is missing, no JSON, of another format or version, lacks `nodes`, or has a wrong value.
        """
        return dataclasses.replace(cls.from_json(read_json(path), str(path)), path=str(path))

    @classmethod
    def from_json(cls, content: Any, title: str = 'ranges') -> Ranges:
        """Return the ranges of which `content` is the `to_json`; `title` begins the messages.

        Only `format`, `version` and `nodes` have to be there; without a `source` it is `title`. UsageError:
        as for `load`.
        """
        if not isinstance(content, dict) or content.get('format') != FORMAT:
            raise UsageError(
                f'{title}: is not a file of ranges ("format" has to be "{FORMAT}"); make one with '
                f'{tool("calibrate")} --calibrate'
            )
        try:
            read(Literal[VERSION], content.get('version'), 'version')
            if 'nodes' not in content:
                raise Mismatch("has no 'nodes'")
            nodes = read(Mapping[str, NodeRange], content['nodes'], 'nodes')
            batches = read(int, content.get('batches', 0), 'batches')
            facts = {name: read(str, content[name], name) for name in TEXTS if name in content}
        except Mismatch as error:
            raise UsageError(f'{title}: {error}') from error
        source = facts.pop('source', '') or title
        calibrator, digest = facts.pop('calibrator', ''), facts.pop('graph_sha256', '')
        return cls(nodes, calibrator, source, batches, digest, **facts)


def quantised(graph: SparseGraph) -> tuple[SparseConvolution | Add, ...]:
    """Return the nodes that have ranges, in order; UsageError: batch normalisation is not folded yet."""
    for node in graph.nodes:
        if isinstance(node, BatchNorm):
            raise UsageError(
                f'{node.name} ({node.module}): batch normalisation is not folded; fold the graph'
            )
    return tuple(node for node in graph.nodes if isinstance(node, SparseConvolution | Add))


def weight_norm(node: SparseConvolution) -> float:
    """Return the Frobenius norm of a convolution's kernel, computed in float64."""
    return float(np.linalg.norm(node.weight.astype(np.float64)))


def graph_digest(graph: SparseGraph) -> str:
    """Return the hex SHA-256 of a graph's sparse part; it is equal in both coordinate orders.

    In it are grid, channels, names, connections, geometry and activations of convolutions, additions and
    ReLUs; not in it are weights, precisions, names of rulebooks and the dense tail.
    """
    facts: list[Any] = [_canonical(graph, graph.spatial_shape), graph.in_channels]
    for node in graph.nodes:
        if isinstance(node, SparseConvolution | Add | Relu):  # the dense tail depends on the order
            facts.append([node.op_type, node.name, node.inputs, node.output])
        if isinstance(node, SparseConvolution):
            triples = (node.kernel_size, node.stride, node.dilation)
            facts.append([node.in_channels, node.out_channels, node.subm, node.inverse, node.activation])
            facts.append([_canonical(graph, triple) for triple in triples])
            # a submanifold kernel centres itself: its padding means nothing
            facts.append(None if node.subm else _canonical(graph, node.padding))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _canonical(graph: SparseGraph, triple: tuple[int, ...]) -> list[int]:
    return [int(value) for value in (triple if graph.order == 'xyz' else reversed(triple))]


def _lines(content: Mapping[str, Any], indent: int) -> str:
    entries = (f'{" " * indent}{json.dumps(key)}: {json.dumps(value)}' for key, value in content.items())
    return ',\n'.join(entries)


def _missing_text(title: str, names: list[str]) -> str:
    count = f' and {len(names) - 6} more' if len(names) > 6 else ''
    return f'{title}: no range for {", ".join(names[:6])}{count}; calibrate again, or add them to the file'


# ---- ranges of a quantised checkpoint


def from_amax(
    graph: SparseGraph, amax: Mapping[str, Any], source: str = 'checkpoint', checkpoint_sha256: str = ''
) -> Ranges:
    """Return the ranges that a quantised checkpoint holds, such as NVIDIA's.

    Args:
        graph: folded.
        amax: quantiser's path -> range, as arrays or numbers. A convolution at module path M reads
            `M._input_quantizer` and `M._weight_quantizer`, an addition in block M
            `M.quant_add._input_quantizer` (or at M itself); a trailing `._amax` and names without
            the leading underscore are the same. A range that is not in it stays missing: see
            `Ranges.missing`.
        source: where the ranges are from, in words; it becomes `Ranges.source`.
        checkpoint_sha256: of the checkpoint file; '' if it is unknown.

    Raises:
        CheckpointError: two names of one quantiser.
        UsageError: the range of an input has several values, or that of a weight another number than output
            channels; one is not positive; the graph is not folded.
    """
    paths = {
        key: re.sub(r'\._(?=(input|weight)_quantizer)', '.', re.sub(r'\._?amax$', '', key)) for key in amax
    }
    try:
        check_distinct(paths.items())
    except CheckpointError as error:
        raise CheckpointError(f'{source}: {error}') from error
    amax_of = {paths[key]: value for key, value in amax.items()}
    nodes = {}
    for node in quantised(graph):
        inputs = amax_of.get(f'{node.module}.input_quantizer')
        if isinstance(node, Add):
            inputs = amax_of.get(f'{node.module}.quant_add.input_quantizer', inputs)
        input_values = _flat_amax(source, node, inputs, 'input', 1)
        weight_values = norm = None
        if isinstance(node, SparseConvolution):
            weights = amax_of.get(f'{node.module}.weight_quantizer')
            weight_values = _flat_amax(source, node, weights, 'weight', node.out_channels)
            norm = weight_norm(node)
        input_amax = None if input_values is None else input_values[0]
        nodes[node.name] = NodeRange(node.module, input_amax, weight_values, norm)
    return Ranges(nodes, 'checkpoint', source, 0, graph_digest(graph), checkpoint_sha256)


def _flat_amax(source: str, node: Node, amax: Any, operand: str, count: int) -> tuple[float, ...] | None:
    """Return the ranges of a quantiser of `count` channels, None if `amax` is None.

    `operand` is 'input' or 'weight', for the message.
    """
    if amax is None:
        return None
    values = np.asarray(amax, np.float64).reshape(-1)
    if values.size != count:
        expected = f'{count}, one per output channel' if operand == 'weight' else count
        raise UsageError(
            f'{source}: {node.name} ({node.module}): {values.size} ranges for its {operand}, expected '
            f'{expected}'
        )
    return tuple(map(float, values))
