"""Pairs of tensors of a graph and records of PyTorch: by values, and behind an error by place."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.graphs.diff.walk import BORN_RTOL, ReferenceTensor, compare, is_informative
from mmdeploy_ext.graphs.io.modules import module_path, plain_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.graphs.diff.program import Program
    from mmdeploy_ext.graphs.diff.walk import Walk
    from mmdeploy_ext.proving.difference.record import TensorRecorder

SAMPLES = 48
"""Values of a tensor that are compared first."""
ROUNDING = 1e-6
"""Records within this relative difference are equally good."""
SIMILAR = 0.7
"""Largest norm of the difference, relative to the record's, of tensors paired by place."""
OPERATORS = {
    'Conv': ('convolution', 'native_batch_norm', 'cudnn_batch_norm'),
    'MatMul': ('part of addmm', 'mm', 'bmm', 'addmm'),
    'Gemm': ('addmm', 'mm'),
    'Add': ('add', 'addmm', 'native_layer_norm', 'native_group_norm'),
    'Sub': ('sub', 'rsub'),
    'Mul': ('mul', 'part of native_group_norm', 'part of native_layer_norm'),
    'InstanceNormalization': ('part of native_group_norm', 'native_group_norm'),
    'LayerNormalization': ('native_layer_norm', 'part of native_layer_norm', 'part of native_group_norm'),
    'BatchNormalization': ('native_batch_norm', 'cudnn_batch_norm'),
    'Transpose': ('permute', 'transpose'),
    'Concat': ('cat', 'stack'),
    'Gather': ('index', 'index_select', 'select', 'gather', 'embedding'),
    'GatherElements': ('gather',),
    'GatherND': ('index',),
    'Slice': ('slice', 'select', 'split'),
    'MaxPool': ('max_pool2d_with_indices',),
    'Clip': ('clamp', 'clamp_min', 'clamp_max', 'hardtanh', 'relu6'),
    'Pow': ('pow', 'square'),
    'Where': ('where', 'masked_fill'),
    'ReduceMax': ('amax', 'max'),
    'ReduceMean': ('mean',),
    'ReduceSum': ('sum',),
}
"""ONNX operator -> PyTorch's operators with other names."""
SINGLE = {
    'Conv': ('convolution',),
    'ConvTranspose': ('convolution',),
    'Gemm': ('addmm',),
    'InstanceNormalization': ('part of native_group_norm',),
    'LayerNormalization': ('native_layer_norm', 'part of native_group_norm'),
}
"""ONNX operator -> PyTorch's operators, one per module."""
SAME_VALUES = (
    'Reshape',
    'Flatten',
    'Squeeze',
    'Unsqueeze',
    'Identity',
    'Cast',
    'Expand',
    'Tile',
    'Slice',
    'Concat',
    'Gather',
    'Split',
    'Pad',
    'Where',
    'Clip',
    'Relu',
    'Max',
    'Min',
)


class RecordIndex:
    """Looks the references of a graph's tensors up in the records of one run of PyTorch.

    `rtol` is the largest error of equal values; `modules` are the paths of all modules that ran.
    """

    def __init__(
        self, recorder: TensorRecorder, weights: Mapping[str, np.ndarray], rtol: float = BORN_RTOL
    ) -> None:
        self.recorder, self.records, self.rtol = recorder, recorder.records, rtol
        self.modules = frozenset({record.module for record in recorder.records} | set(recorder.calls))
        groups: dict[tuple[str, int], list[int]] = collections.defaultdict(list)
        for index, record in enumerate(recorder.records):
            groups[_group(record.value)].append(index)
        self._groups = {
            key: (np.array(indices), np.stack([_sample(recorder.records[index].value) for index in indices]))
            for key, indices in groups.items()
        }
        self._owners: dict[tuple[int, float], str] = {}
        for name, array in weights.items():
            if array.ndim > 1:
                owner = plain_path(name).rpartition('.')[0]  # as the records have it
                self._owners.setdefault(_fingerprint(array), owner)

    def named(self) -> dict[str, ReferenceTensor]:
        return {
            name: self.reference(index, 'name')
            for index, record in enumerate(self.records)
            for name in record.names
        }

    def reference(self, index: int, how: str) -> ReferenceTensor:
        record = self.records[index]
        return ReferenceTensor(record.value, record.label, record.module, how, index)

    def module_path(self, program: Program, position: int) -> str:
        node = program.index.nodes[position]
        if scope := module_path(node, self.modules):
            return scope
        for name in program.index.reads(position):
            array = program.constants.get(name)
            if array is not None and array.ndim > 1:
                owner = self._owners.get(_fingerprint(array))
                if owner:
                    return owner
        return ''

    def lookup(self, walk: Walk, tensor: str, position: int, value: np.ndarray) -> ReferenceTensor | None:
        """Return a record with a tensor's values, or None."""
        program = walk.program
        if value.size == 0 or (tensor in program.static and value.dtype.kind != 'f'):
            return None
        before = walk.latest_input(position)
        first = before if program.index.nodes[position].op_type in SAME_VALUES else before + 1
        errors = {index: error for index, error in self._equal(value).items() if index >= first}
        if not errors:
            return None
        nearest = max(ROUNDING, min(errors.values()))  # a clamp at 1e-5 is not taken for what it clamps
        candidates = [index for index, error in errors.items() if error <= nearest]
        module = self.module_path(program, position) if len(candidates) > 1 else ''
        same_module = [index for index in candidates if self.records[index].module == module]
        return self.reference((same_module or candidates)[0], 'value')

    def _equal(self, value: np.ndarray) -> dict[int, float]:
        indices, samples = self._groups.get(_group(value), ((), ()))
        if not len(indices):
            return {}
        sample = _sample(value)
        bound = 0.0 if value.dtype.kind != 'f' else self.rtol * float(np.nanmax(np.abs(value), initial=0))
        with np.errstate(invalid='ignore'):
            near = (np.abs(samples - sample) <= bound) | (samples == sample)
        near |= np.isnan(samples) & np.isnan(sample)
        flat = value.reshape(-1)
        errors = {
            int(index): compare(flat, self.records[index].value.reshape(-1))[0] or 0.0
            for index in indices[near.all(1)]
        }
        return {index: error for index, error in errors.items() if error <= self.rtol}

    def by_place(self, walk: Walk, segment: Sequence[str]) -> dict[str, ReferenceTensor]:
        """Return name -> reference of the first tensor of `segment` that can be paired by place, or {}."""
        claimed = _claimed(walk)
        for tensor in segment:
            index = self._place(walk, tensor, claimed)
            if index is not None:
                return {tensor: self.reference(index, 'order')}
        return {}

    def by_module(self, walk: Walk) -> dict[str, ReferenceTensor]:
        claimed, references = _claimed(walk), {}
        for tensor, row in walk.rows.items():
            operators = SINGLE.get(walk.program.index.nodes[row.position].op_type)
            value = walk.good.get(tensor)
            if row.reference is not None or operators is None or value is None:
                continue
            module, before = self.module_path(walk.program, row.position), walk.latest_input(row.position)
            for index in range(before + 1, len(self.records)):
                record = self.records[index]
                if index in claimed or record.operator not in operators or record.module != module:
                    continue
                if _distance(value, record.value) < SIMILAR:
                    references[tensor] = self.reference(index, 'module')
                    claimed.add(index)
                    break
        return references

    def _place(self, walk: Walk, tensor: str, claimed: set[int]) -> int | None:
        row = walk.rows[tensor]
        node = walk.program.index.nodes[row.position]
        value, module = walk.good.get(tensor), self.module_path(walk.program, row.position)
        ranks = []
        for index in range(walk.latest_input(row.position) + 1, len(self.records)):
            record = self.records[index]
            if index in claimed or not stands_for(record.operator, node.op_type):
                continue
            if value is not None and _group(value)[0] != _group(record.value)[0]:
                continue  # the indices of a top-k are not its values
            calls = (name for name in record.outputs_of if name.startswith(f'{module} ('))
            in_module = bool(module) and (record.module == module or any(calls))
            distance = _distance(value, record.value)
            if in_module or not distance > SIMILAR:  # NaN if a mask is infinite: its place alone tells
                ranks.append((not in_module, distance, index))
        return min(ranks)[2] if ranks else None


def _claimed(walk: Walk) -> set[int]:
    return {row.reference.record for row in walk.rows.values() if row.reference is not None}


def stands_for(operator: str, op_type: str) -> bool:
    """Whether an ONNX node may stand for an operator of PyTorch."""
    if op_type in OPERATORS:
        return operator in OPERATORS[op_type]
    if op_type == 'Resize':
        return operator.startswith('upsample')
    return op_type.lower() in operator.replace('_', '')


def _distance(value: np.ndarray | None, reference: np.ndarray) -> float:
    if value is None or value.size != reference.size or not is_informative(value):
        return 1e3
    # not `ArrayDistance`: it is the norm that ranks records, and an infinity on both sides has to give NaN
    value, reference = value.reshape(-1).astype(np.float64), reference.reshape(-1).astype(np.float64)
    length = float(np.linalg.norm(reference))
    return float(np.linalg.norm(value - reference)) / length if length else 1e3


def _group(value: np.ndarray) -> tuple[str, int]:
    return {'i': 'i', 'u': 'i'}.get(value.dtype.kind, value.dtype.kind), value.size


def _sample(value: np.ndarray) -> np.ndarray:
    flat = value.reshape(-1)
    return flat[np.linspace(0, flat.size - 1, min(SAMPLES, flat.size)).astype(np.int64)].astype(np.float64)


def _fingerprint(array: np.ndarray) -> tuple[int, float]:
    return array.size, float(np.sort(array.astype(np.float64), axis=None)[:: max(array.size // 64, 1)].sum())
