"""Ranges (amax) of a sparse graph's quantisers, in a JSON file that people edit.

A symmetric 8-bit quantiser has the scale amax/127: one range per input (shared by an addition's two), one per
output channel O of a weight. Both coordinate orders share names and values.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np

from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.errors import CheckpointError, UsageError, check_distinct
from mmdeploy_ext.base.files import atomic_path, read_json
from mmdeploy_ext.base.typed_json import Bounds, JsonDataclass, Mismatch, optional, read
from mmdeploy_ext.runtime.sparse.ir import Add, BatchNorm, Node, Relu, SparseConvolution, SparseGraph

FORMAT, VERSION = 'mm2onnx-scn-ranges', 1
NORM_TOLERANCE = 1e-3
"""Relative difference of equal kernels' norms: folding in fp16 moves it by 1e-4."""
TEXTS = ('calibrator', 'source', 'graph_sha256', 'checkpoint_sha256')
Amax = Annotated[float, Bounds(above=0)]


@dataclasses.dataclass(frozen=True)
class NodeRange(JsonDataclass):
    """Ranges of one node.

    Attributes:
        module: path of its module, for readers.
        input_amax: amax of its input, or None.
        weight_amax: (O,), or None.
        weight_norm: Frobenius norm of the folded kernel, compared if not None.
    """

    module: str = optional('')
    input_amax: Amax | None = optional()
    weight_amax: tuple[Amax, ...] | None = optional()
    weight_norm: float | None = optional()

    def to_json(self) -> dict[str, Any]:
        return {'module': self.module, 'input_amax': self.input_amax, **super().to_json()}


@dataclasses.dataclass(frozen=True)
class Ranges:
    """Ranges of a whole graph; unknown texts are '' and not compared.

    Attributes:
        nodes: node name -> ranges.
        calibrator: 'mse', 'percentile 99.99', 'max', 'checkpoint', ...
        source: measured samples, in words.
        batches: number of measured sweeps, or 0.
        graph_sha256: `graph_digest` of the graph.
        checkpoint_sha256: for messages.
        path: file that they came from; not written.
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
        return self.path or f'ranges of {self.source}'

    def input_amax(self, name: str) -> float:
        return self._amax(name, 'input_amax')

    def weight_amax(self, name: str) -> np.ndarray:
        return np.array(self._amax(name, 'weight_amax'), np.float32)

    def _amax(self, name: str, field: str) -> Any:
        value = getattr(self.nodes.get(name), field, None)
        if value is None:
            raise UsageError(_missing_text(self.title, [f'{name}.{field}']))
        return value

    def missing(self, graph: SparseGraph) -> list[str]:
        """Missing ranges of a folded graph, e.g. ['conv3.input_amax']."""
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
        """Raise UsageError for ranges of another graph, kernel or node, or incomplete ones."""
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
                f'{self.title}: has ranges of another network (graph {self.graph_sha256[:12]}, expected '
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
            f'{self.title}: has ranges of other weights{hashes}: {node.name} ({node.module}) has the norm '
            f'{norm:.6g}, expected {ranges.weight_norm:.6g}; calibrate this checkpoint'
        )

    def half(self) -> Ranges:
        """Round to fp16 (6e-8 to 65504, else UsageError), as the reference does for BEVFusion alone.

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
        head = {'format': FORMAT, 'version': VERSION}
        head |= {key: value for key, value in vars(self).items() if key not in ('nodes', 'path')}
        return dict(head, nodes=self._nodes_json())

    def save(self, path: str | os.PathLike[str]) -> None:
        content = self.to_json()
        nodes = content.pop('nodes')
        blocks = [f'  {json.dumps(name)}: {{\n{_lines(node, 3)}\n  }}' for name, node in nodes.items()]
        text = '\n'.join(['{', f'{_lines(content, 1)},', ' "nodes": {', ',\n'.join(blocks), ' }', '}'])
        with atomic_path(path) as temporary:
            temporary.write_text(text + '\n', encoding='utf-8')

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Ranges:
        """Read a file of `save`, edited or not; UsageError: missing or malformed."""
        return dataclasses.replace(cls.from_json(read_json(path), str(path)), path=str(path))

    @classmethod
    def from_json(cls, content: Any, title: str = 'ranges') -> Ranges:
        """Rebuild from `to_json`; only `format`, `version` and `nodes` are required."""
        if not isinstance(content, dict) or content.get('format') != FORMAT:
            raise UsageError(
                f'{title}: is not a file of ranges ("format" must be "{FORMAT}"); write one with '
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
    for node in graph.nodes:
        if isinstance(node, BatchNorm):
            raise UsageError(
                f'{node.name} ({node.module}): batch normalisation is not folded; fold the graph'
            )
    return tuple(node for node in graph.nodes if isinstance(node, SparseConvolution | Add))


def weight_norm(node: SparseConvolution) -> float:
    return float(np.linalg.norm(node.weight.astype(np.float64)))


def graph_digest(graph: SparseGraph) -> str:
    """Hash of grid, channels, names, connections, geometry and activations, equal in both orders."""
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
    """Ranges of a quantised checkpoint, such as NVIDIA's, for a folded graph.

    `amax`: quantiser's path -> range: `M._input_quantizer`, `M._weight_quantizer`, of an addition
    `M.quant_add._input_quantizer`; perhaps with `._amax`, or without the leading underscore.

    Raises:
        CheckpointError: two names of one quantiser.
        UsageError: wrong numbers of values, or not positive.
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
