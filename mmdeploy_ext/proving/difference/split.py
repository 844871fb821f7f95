"""Where a difference comes from: rounding in PyTorch, rounding in ONNX Runtime, or the export.

Both sides run in float32 and in float64: what is left in float64 is the exporter's. Operators that have no
float64 in ONNX Runtime run in float32 on rounded values, and Conv in PyTorch.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import torch
from onnx import TensorProto, helper

from mmdeploy_ext.base.errors import InferenceError
from mmdeploy_ext.graphs.diff.program import NodeRunner, Program
from mmdeploy_ext.proving.difference.record import record_stages
from mmdeploy_ext.proving.float64 import distance_of, in_float64

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.graphs.diff.walk import Walk
    from mmdeploy_ext.proving.difference.record import TensorRecord
    from mmdeploy_ext.spec.tensors import Stage

PARTS = ('rounding in PyTorch', 'rounding in ONNX Runtime', 'export')


@dataclasses.dataclass(frozen=True)
class Split:
    """One tensor: largest differences relative to its largest value, in the order of `PARTS`."""

    tensor: str
    module: str
    parts: tuple[float, float, float]


def split_of(
    stages: Sequence[Stage],
    feeds: Mapping[str, np.ndarray],
    records: Sequence[TensorRecord],
    walked: Walk,
) -> tuple[list[Split], list[str]]:
    """Return the parts of each tensor that a module gives, in order, and operators that ran in float32.

    `records`: of the stages in float32; `walked`: the file.
    """
    exact = _modules_in_float64([*stages], feeds)
    wide, narrow = _graph_in_float64(walked.program, feeds)
    found = []
    for name, row in walked.rows.items():
        if row.reference is None or row.reference.record < 0:
            continue
        record = records[row.reference.record]
        label = next((label for label in (*record.names, *record.outputs_of) if label in exact), '')
        arrays = [row.reference.value, walked.free.get(name), wide.get(name), exact.get(label)]
        if any(array is None for array in arrays):
            continue
        arrays = [array.squeeze() for array in arrays]  # a Linear in float64 drops a batch of 1
        if len({array.shape for array in arrays}) > 1:
            continue
        torch_single, graph_single, graph_exact, torch_exact = arrays
        pairs = (torch_single, torch_exact), (graph_single, graph_exact), (graph_exact, torch_exact)
        largest = max(float(np.abs(torch_exact).max(initial=0.0)), 1e-30)
        parts = tuple(float(distance_of(*pair).max(initial=0.0)) / largest for pair in pairs)
        found.append(Split(name, record.module or record.label, parts))
    return found, narrow


def split_lines(found: Sequence[Split], narrow: Sequence[str]) -> list[str]:
    """Return a line for each part: its size at the last tensor, and the module that adds most of it."""
    if not found:
        return ['not split: the file has no tensor of a module']
    lines = []
    for place, title in enumerate(PARTS):
        sizes = [entry.parts[place] for entry in found]
        growth = [size - max(sizes[:index], default=0.0) for index, size in enumerate(sizes)]
        worst = found[int(np.argmax(growth))]
        text = f'{title}: {sizes[-1]:.1e} of the largest value at {found[-1].tensor}'
        lines.append(f'{text}, most of it in {worst.module} ({worst.parts[place]:.1e} at {worst.tensor})')
    if narrow:
        lines.append(f'computed in float32 on both sides of "export": {", ".join(narrow)}')
    return lines


def _modules_in_float64(stages: list[Stage], feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    recorder, inputs = None, {name: torch.tensor(array) for name, array in feeds.items()}
    while stages and recorder is None:
        with contextlib.ExitStack() as stack:
            for stage in stages:
                stack.enter_context(in_float64(stage.module))
            try:
                recorder = record_stages(stages, inputs)
            except RuntimeError:  # the last stage has an operator of float32 alone, as suppression
                stages.pop()
    if recorder is None:
        return {}
    return {
        label: record.value for record in recorder.records for label in (*record.outputs_of, *record.names)
    }


def _graph_in_float64(
    program: Program, feeds: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[str]]:
    runner, narrow = NodeRunner(), set()
    values = {
        name: _wider(array) for name, array in (program.constants | program.defaults | dict(feeds)).items()
    }
    for position in program.steps:
        node, names = program.index.nodes[position], program.index.reads(position)
        if any(name not in values for name in names):
            continue
        arrays = [values[name] for name in names]
        try:
            results = _computed(program, position, arrays)
            if results is None:
                try:
                    results = runner.run(program, position, values)
                except InferenceError:
                    narrow.add(node.op_type)
                    single = {name: _narrower(values[name]) for name in names}
                    results = runner.run(program, position, single)
        except InferenceError:
            continue  # what follows has no value in float64
        values.update(zip(program.index.writes(position), map(_wider, results), strict=True))
    return values, sorted(narrow)


def _computed(program: Program, position: int, arrays: Sequence[np.ndarray]) -> list[np.ndarray] | None:
    """Results of nodes that ONNX Runtime does not compute in float64, or whose type is an attribute."""
    node = program.index.nodes[position]
    given = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    if node.op_type == 'Cast' and given['to'] == TensorProto.FLOAT:
        return [arrays[0].astype(np.float64)]
    pads = list(given.get('pads', (0, 0, 0, 0)))
    if node.op_type != 'Conv' or arrays[0].ndim != 4 or given.get('auto_pad', b'NOTSET') != b'NOTSET':
        return None
    x, weight, *bias = map(torch.from_numpy, arrays)
    x = torch.nn.functional.pad(x, (pads[1], pads[3], pads[0], pads[2]))
    settings = dict(stride=given.get('strides', (1, 1)), dilation=given.get('dilations', (1, 1)))
    result = torch.nn.functional.conv2d(x, weight, *bias, groups=given.get('group', 1), **settings)
    return [result.numpy()]


def _wider(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if getattr(array, 'dtype', None) == np.float32 else array


def _narrower(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if getattr(array, 'dtype', None) == np.float64 else array
