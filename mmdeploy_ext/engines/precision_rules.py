"""What engines get wrong, or compute in another precision than the file says: dated facts.

Gathered 2026-11 from release notes and threads about exports; those of TensorRT were not run here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import onnx

from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.graphs.io.index import Index, opsets_of

MOST_KEYS = 65_504
"""Largest number in float16."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """A fact about an engine.

    Attributes:
        engine: and its versions.
        operator: of the nodes.
        applies: graph and position of such a node -> whether it is meant.
        text: what happens.
        way_out: what to do.
    """

    engine: str
    operator: str
    applies: Callable[[Graph, int], bool]
    text: str
    way_out: str


class Graph:
    """A graph with the types of its tensors."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.index, self.types = Index(model), types.infer(model)
        self.opset = opsets_of(model).get('', 0)

    def dtype(self, position: int) -> str:
        """'float16' of a node's first output, '' if unknown."""
        value = self.types.get(self.index.writes(position)[0])
        return types.dtype(value.tensor_type.elem_type) if value else ''

    def keys(self, position: int) -> int:
        """Size of the last axis of a node's output; 0 if it is open."""
        sizes = types.shape(self.types.get(self.index.writes(position)[0])) or [0]
        return sizes[-1] if isinstance(sizes[-1], int) else 0

    def is_int8(self, position: int) -> bool:
        producers = map(self.index.producer, self.index.nodes[position].input[:2])
        return all(
            place is not None and self.index.nodes[place].op_type == 'DequantizeLinear' for place in producers
        )

    def is_attention(self, position: int) -> bool:
        """Whether a Softmax has scores of a product of two computed tensors, and multiplies values."""
        waiting, products = [position], []
        while waiting:
            node = self.index.nodes[waiting.pop()]
            producers = [self.index.producer(name) for name in node.input]
            for place in filter(lambda place: place is not None, producers):
                kind = self.index.nodes[place].op_type
                products += [place] if kind == 'MatMul' else []
                waiting += [place] if kind in ('Mul', 'Div', 'Add', 'Where') else []
        return any(self._is_computed(place) for place in products)

    def _is_computed(self, position: int) -> bool:
        return all(name not in self.index.constants for name in self.index.reads(position))


RULES = (
    Rule(
        'TensorRT 10.13 to 11.1',
        'GridSample',
        lambda graph, position: graph.opset >= 20,
        'GridSample of opset 20 gives wrong values',
        'export with --opset-version 18',
    ),
    Rule(
        'TensorRT 10 and 11',
        'Softmax',
        lambda graph, position: (
            graph.dtype(position) == 'float16'
            and graph.keys(position) > MOST_KEYS
            and graph.is_attention(position)
        ),
        f'fused attention in float16 overflows beyond {MOST_KEYS:,} keys',
        'keep its module in float32: --keep-fp32',
    ),
    Rule(
        'TensorRT 10 and 11',
        'Softmax',
        lambda graph, position: graph.dtype(position) == 'float16' and graph.is_attention(position),
        'fused attention sums in float16, unless query, key and value are cast to float32',
        'keep its module in float32 where results differ: --keep-fp32',
    ),
    *(
        Rule(
            'TensorRT 10 and 11, CUDA',
            operator,
            lambda graph, position: graph.dtype(position) == 'float' and not graph.is_int8(position),
            'products of float32 are rounded to TF32 (10 bits) by default',
            'build with --noTF32; ONNX Runtime: use_tf32=0',
        )
        for operator in ('Conv', 'MatMul', 'Gemm')
    ),
    *(
        Rule(
            'ONNX Runtime 1.31 on a CPU',
            operator,
            lambda graph, position: graph.dtype(position) == 'bfloat16',
            'has no bfloat16',
            'run it on a GPU; proofs here simulate it',
        )
        for operator in ('Conv', 'Relu', 'Add', 'Sigmoid')
    ),
)


def found_rules(model: onnx.ModelProto, engine: str = '') -> dict[Rule, list[str]]:
    """Return the rules of an engine that apply -> names of the nodes; '' takes all engines."""
    graph, found = Graph(model), {}
    for position, node in enumerate(graph.index.nodes):
        for rule in RULES:
            if (
                rule.operator == node.op_type
                and rule.engine.startswith(engine)
                and rule.applies(graph, position)
            ):
                found.setdefault(rule, []).append(node.name or f'#{position}')
    return found


def rule_lines(model: onnx.ModelProto, engine: str = '') -> list[str]:
    """Return a line per fact: engine, nodes, what happens, the way out."""
    lines: dict[tuple[str, str, str], list[str]] = {}
    for rule, nodes in found_rules(model, engine).items():
        lines.setdefault((rule.engine, rule.text, rule.way_out), []).extend(nodes)
    return [
        f'{engine}: {nodes[0]}{f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""}: {text}; {way_out}'
        for (engine, text, way_out), nodes in lines.items()
    ]
