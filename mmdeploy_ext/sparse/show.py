"""The nodes of a sparse graph as the engine reads them: as plain data, and as lines."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.sparse.contract import Reader
from mmdeploy_ext.sparse.contract_flow import Walk

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

    from mmdeploy_ext.sparse.contract_fields import Layer
    from mmdeploy_ext.sparse.contract_flow import Flow

TITLES = {'Relu': 'ReLU', 'QuantAdd': 'Add'}


def sparse_layers(model: onnx.ModelProto) -> list[dict[str, Any]]:
    """Return the nodes of a sparse graph as the engine reads them, with grids and channels."""
    layers = Reader(model.graph).layers
    flows = Walk(model.graph, layers, None).flows
    counts: collections.Counter[str] = collections.Counter()
    rows = []
    for layer in layers:
        title = TITLES.get(layer.op_type, layer.op_type)
        row = dict(name=layer.name, op_type=layer.op_type, number=counts[title], inputs=list(layer.inputs))
        rows.append(dict(row, output=layer.output, **_facts(layer, flows.get(layer.output))))
        counts[title] += 1
    return rows


def _facts(layer: Layer, flow: Flow | None) -> dict[str, Any]:
    """Return the facts of a node that are shown, as the engine knows them."""
    names = ('kernel_size', 'stride', 'padding', 'dilation', 'subm', 'inverse', 'activation', 'rulebook')
    names += ('output_bound', 'precision', 'output_precision', 'format', 'dims')
    known = {name: layer.values[name] for name in names if name in layer.values}
    facts = {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()}
    if layer.is_convolution and layer.weight.ndim == 5:
        facts.update(in_channels=layer.weight.shape[4], out_channels=layer.weight.shape[0])
    if flow is not None:
        facts.update(grid=list(flow.grid), sites=flow.sites, shape=list(flow.shape), dense=flow.dense)
    return facts


def trace_lines(layers: list[dict[str, Any]]) -> Iterator[str]:
    """Yield one line per node in the words of the reference exporter's trace, and what is behind it.

    E.g. `--> SparseConvolution0[subm] -> Input 0, Output 1   5 -> 16, 3x3x3 on 1440x1440x41, ReLU`.
    """
    traced = [
        f'--> {TITLES.get(row["op_type"], row["op_type"])}{row["number"]}{_bracket(row)} -> '
        f'Input {" + ".join(row["inputs"])}, Output {row["output"]}'
        for row in layers
    ]
    width = max(map(len, traced), default=0)
    for line, row in zip(traced, layers, strict=True):
        yield f'{line:<{width}}  {_details(row)}'.rstrip()


def _bracket(row: dict[str, Any]) -> str:
    if row['op_type'] == 'SparseConvolution':
        return '[inverse]' if row['inverse'] else '[subm]' if row['subm'] else '[conv]'
    if 'format' in row:
        return f'[{row["format"]}]'
    return f'[{",".join(map(str, row["dims"]))}]' if 'dims' in row else ''


def _details(row: dict[str, Any]) -> str:
    """Return what a node does, in a few words."""
    words = []
    if row['op_type'] == 'SparseConvolution':
        channels = f'{row.get("in_channels", "?")} -> {row.get("out_channels", "?")}'
        words.append(f'{channels}, {by(row["kernel_size"])}')
        if not row['subm']:
            words.append(f'stride {by(row["stride"])}, padding {by(row["padding"])}')
    where = row.get('shape') if row.get('dense') else row.get('grid')
    if where and row['op_type'] not in ('Relu', 'Add', 'QuantAdd'):
        words.append(f'{"" if row.get("dense") else "on "}{by(where)}')
    if row.get('activation') not in (None, '', 'None'):
        words.append(row['activation'])
    if row.get('rulebook'):
        words.append(f'rulebook {row["rulebook"]}')
    words += filter(None, [precision_text(row, '->')])
    return ', '.join(words)


def precision_text(row: dict[str, Any], arrow: str = '→') -> str:
    """Return 'fp16 → int8', '' where a node states none."""
    kinds = row.get('precision'), row.get('output_precision')
    return f'{kinds[0] or "fp16"} {arrow} {kinds[1] or "fp16"}' if any(kinds) else ''


def by(sizes: list[int]) -> str:
    """Return '3x3x3'."""
    return 'x'.join(map(str, sizes)) or '?'
