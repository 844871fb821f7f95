"""The first tensor where a file leaves PyTorch: records of PyTorch for the walk of `graphs/diff`."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import TensorProto, helper
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmdeploy_ext.base.arrays import to_array
from mmdeploy_ext.base.errors import InferenceError, Mm2OnnxError, UsageError, one_line
from mmdeploy_ext.base.taps import collect_taps
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.exporting.copy import prepared
from mmdeploy_ext.families.base import exported_options
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.families.host_programs import hosted
from mmdeploy_ext.graphs.diff import findings
from mmdeploy_ext.graphs.diff.files import engine_notes
from mmdeploy_ext.graphs.diff.findings import regions
from mmdeploy_ext.graphs.diff.program import Constants, NodeRunner, Program
from mmdeploy_ext.graphs.diff.structure import (
    BORN_RTOL,
    ReferenceTensor,
    align,
    changes,
    compare,
    is_informative,
    walk,
)
from mmdeploy_ext.graphs.io import files
from mmdeploy_ext.graphs.io.files import module_path, plain_path
from mmdeploy_ext.proving import file_checks
from mmdeploy_ext.proving.float64 import distance_of, in_float64
from mmdeploy_ext.proving.inputs import proof_inputs
from mmdeploy_ext.proving.pictures import options_besides_form, references, run_case
from mmdeploy_ext.spec.metadata import Metadata
from mmdeploy_ext.spec.tensors import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import onnx

    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.graphs.diff.structure import Walk
    from mmdeploy_ext.spec.verdict import Verdict

    Pictures = Sequence[tuple[str, np.ndarray]]


# The first tensor in which an ONNX file differs from PyTorch.


# Records of PyTorch's tensors: every module's output, every tap, every tensor in between.


NOT_COPIED = (
    'detach',
    'alias',
    'view',
    '_unsafe_view',
    'unsqueeze',
    'squeeze',
    'lift_fresh',
    '_reshape_alias',
    'expand',
    't',
)
"""Operators that keep values and order, expand, or turn weights."""


PACKAGES = Path(torch.__file__).parent, Path(__file__).parents[1]
"""Folders of PyTorch and of this package."""
LIBRARIES = tuple(os.path.join(folder, '') for package in PACKAGES for folder in (package, package.resolve()))
"""The same as text with a final separator, also without symbolic links."""


@dataclasses.dataclass
class TensorRecord:
    """One tensor that PyTorch made.

    Attributes:
        operator: e.g. 'convolution'; 'part of addmm' for a tensor inside it; 'view' for an unrecorded
            operator.
        module: path of the innermost module that ran, or ''.
        line: 'file:line' of the user's code.
        names: its names as a tap and as a tensor of the graph.
        outputs_of: modules that return it, inner ones first, e.g. 'bbox_head.atss_cls (call 2)'.
    """

    value: np.ndarray
    operator: str
    module: str
    line: str = ''
    names: list[str] = dataclasses.field(default_factory=list)
    outputs_of: list[str] = dataclasses.field(default_factory=list)

    @property
    def label(self) -> str:
        source = self.outputs_of[0] if self.outputs_of else self.module
        if not self.names:
            return source
        return f'{self.names[0]}: {source}' if source else self.names[0]


class TensorRecorder(TorchDispatchMode):
    """Copies the outputs of operators while it is active.

    Attributes:
        records: in the order of execution.
        calls: module path -> number of finished calls.
        stack: paths of the running modules, the innermost last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.records: list[TensorRecord] = []
        self.calls: dict[str, int] = collections.Counter()
        self.stack: list[str] = []
        # address of a tensor's memory -> indices of the records of tensors that were there
        self._at: dict[int, list[int]] = collections.defaultdict(list)
        self._paused = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        operator = func.overloadpacket.__name__.rstrip('_') or func.overloadpacket.__name__
        if not self._paused and operator not in NOT_COPIED:
            self._keep_parts(operator, args)  # first: a result is searched among records behind its parts
            for tensor in _tensors(result):
                self.keep(tensor, operator)
        return result

    def keep(self, tensor: torch.Tensor, operator: str) -> int:
        """Copy a tensor that `operator` made; return the index of its record."""
        module = self.stack[-1] if self.stack else ''
        self.records.append(TensorRecord(self._copy(tensor), operator, module, line_of_user()))
        self._at[tensor.data_ptr()].append(len(self.records) - 1)
        return len(self.records) - 1

    def _copy(self, tensor: torch.Tensor) -> np.ndarray:
        self._paused = True
        try:
            return to_array(tensor)
        finally:
            self._paused = False

    def _keep_parts(self, operator: str, args: Sequence[Any]) -> None:
        if operator not in INSIDE:
            return
        self._paused = True
        try:
            parts = INSIDE[operator](*args)
        finally:
            self._paused = False
        for tensor in parts:
            self.keep(tensor, f'part of {operator}')

    def name(self, name: str, tensor: torch.Tensor) -> None:
        """Name the record of a tensor; a view of another shape becomes a new record."""
        index = self._find(tensor)
        if self.records[index].value.shape != tensor.shape:
            index = self.keep(tensor, 'view')
        self.records[index].names.append(name)

    def leave(self, path: str, outputs: Any) -> None:
        indices = [self._find(leaf) for leaf in _tensors(outputs)]
        self.stack.pop()
        self.calls[path] += 1
        for index in indices:
            self.records[index].outputs_of.append(f'{path or "the model"} (call {self.calls[path]})')

    def _find(self, tensor: torch.Tensor) -> int:
        values = self._copy(tensor).tobytes()
        for index in reversed(self._at[tensor.data_ptr()]):
            record = self.records[index].value
            if record.nbytes == len(values) and record.tobytes() == values:
                return index
        return self.keep(tensor, 'view')


def line_of_user() -> str:
    """Return the innermost 'file:line' outside of `LIBRARIES`, or ''."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((*LIBRARIES, '<')):
            return f'{file}:{frame.f_lineno}'
        frame = frame.f_back
    return ''


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor) and leaf.numel()]


def _group_norm(
    x: torch.Tensor, weight: Any, bias: Any, n: int, c: int, hw: int, groups: int, eps: float
) -> list[torch.Tensor]:
    plain = torch.nn.functional.group_norm(x, groups, None, None, eps)
    return [plain] if weight is None else [plain, plain * weight.view(-1, *[1] * (x.dim() - 2))]


def _layer_norm(x: torch.Tensor, shape: Any, weight: Any, bias: Any, eps: float) -> list[torch.Tensor]:
    plain = torch.nn.functional.layer_norm(x, list(shape), None, None, eps)
    return [plain] if weight is None else [plain, plain * weight]


INSIDE: dict[str, Callable[..., list[torch.Tensor]]] = {
    'addmm': lambda bias, left, right, **_: [left @ right],
    'native_group_norm': _group_norm,
    'native_layer_norm': _layer_norm,
}
"""Operator -> function of its arguments that returns the tensors inside it."""


def record_stages(stages: Sequence[Stage], inputs: Mapping[str, torch.Tensor]) -> TensorRecorder:
    """Run the modules of a graph in order, and record their results."""
    recorder, tensors = TensorRecorder(), dict(inputs)
    with torch.no_grad(), collect_taps() as taps:
        for stage in stages:
            with _watched(stage.module, recorder), recorder:
                outputs = stage.module(*(tensors[name] for name in stage.inputs))
            outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
            tensors.update(zip(stage.outputs, outputs, strict=True))
            for name in stage.outputs:
                recorder.name(name, tensors[name])
    for name, tensor in taps.items():
        if name not in tensors and isinstance(tensor, torch.Tensor) and tensor.numel():
            recorder.name(name, tensor)
    return recorder


@contextlib.contextmanager
def _watched(module: torch.nn.Module, recorder: TensorRecorder) -> Iterator[None]:
    with contextlib.ExitStack() as hooks:
        hooks.callback(recorder.stack.clear)
        for path, inner in module.named_modules():
            if path:
                name = plain_path(path)
                enter = inner.register_forward_pre_hook(lambda *_, name=name: recorder.stack.append(name))
                leave = inner.register_forward_hook(
                    lambda _module, _args, outputs, name=name: recorder.leave(name, outputs), always_call=True
                )
                hooks.enter_context(enter)
                hooks.enter_context(leave)
        yield


# Pairs of tensors of a graph and records of PyTorch: by values, and behind an error by place.


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


# Where a difference comes from: rounding in PyTorch, rounding in ONNX Runtime, or the export.
#
# Both sides run in float32 and in float64: what is left in float64 is the exporter's. Operators that have no
# float64 in ONNX Runtime run in float32 on rounded values, and Conv in PyTorch.


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


MAX_PAIRED_BY_PLACE = 24
"""Most walks of a graph that pair tensors behind an error by module or place."""
JITTER = 0.2
"""Deviation of the noise on traced inputs, relative to theirs; absolute for constant inputs."""


NEAR = 100.0
"""Times the tolerance: a larger difference is no rounding."""


@dataclasses.dataclass
class Compared:
    """The modules that a file was exported from, and the inputs of the comparison."""

    stages: Sequence[Stage]
    feeds: dict[str, np.ndarray]
    fresh_export: file_checks.Export | None
    title: str
    beside: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, module: torch.nn.Module, model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> Compared:
        """Return a module with a file's inputs and outputs, in its order and on the CPU."""
        stage = Stage('', module, tuple(feeds), tuple(value.name for value in model.graph.output))
        return cls([stage], dict(feeds), None, '')


def first_difference(
    detector: Detector,
    path: str,
    images: Pictures | None = None,
    feeds: Mapping[str, np.ndarray] | None = None,
    bars: findings.DiffBars | None = None,
    fresh: bool = True,
    against_float64: bool = False,
) -> findings.Comparison:
    """Compare a file with its PyTorch model, tensor by tensor.

    - `images`: (title, (h, w, 3) uint8 BGR); None: a model of other samples.
    - `feeds`: name -> array of every input, instead.
    - `bars`: None: the bars of the file's precision.
    - `fresh`: export the modules again, to tell which tensor is which.
    - `against_float64`: note how much of the difference is rounding of either side, and how much the export.
    """
    model = files.load(path)
    metadata = Metadata.from_props({entry.key: entry.value for entry in model.metadata_props}, path)
    metadata.require(path, detector.family.name)
    if images is not None:
        detector.normalise_with(metadata.preprocess.mean, metadata.preprocess.std)
    compared = compared_of(detector, metadata, images, feeds)
    bars = bars or findings.diff_bars_of(metadata.options.get('precision'))
    search = Search(compared, bars)
    comparison = search.compare(model, fresh)
    comparison.subject = dict(
        kind='checkpoint',
        file=str(path),
        family=metadata.family,
        form=metadata.form,
        config=detector.config,
        checkpoint=detector.checkpoint,
        input=compared.title,
        inputs=findings.shape_texts(compared.feeds),
        **comparison.subject,
    )
    outputs = {value.name for value in model.graph.output}
    comparison.missing = [name for name in metadata.spec.output_names if name not in outputs]
    if fresh:
        if metadata.edits:
            commands = ', '.join(metadata.edits)
            comparison.notes.append(f'edited by {commands}: not compared with a fresh export')
        else:
            graph = file_checks.compare_with_fresh_export(model, compared.fresh_export)
            comparison.graph = '' if graph.passed else graph.text
    comparison.notes += _upstream_notes(detector, metadata, search) if images is not None else ()
    if against_float64:
        comparison.notes += split_lines(*search.split())
    if feeds is None and comparison.equal and images is not None:
        comparison.results = _differing_results(detector, metadata, path, images)
    if metadata.checkpoint_sha256 != detector.checkpoint_sha256:
        comparison.notes.append('the file was exported from another checkpoint')
    return comparison


def difference_lines(
    detector: Detector, paths: Sequence[str], images: Pictures | None, verdict: Verdict
) -> list[str]:
    """Return where the files of a proof whose outputs fail leave PyTorch, or [].

    Of a file that fails by less than `NEAR` times the tolerance also whose the difference is.
    """
    failed = [one.figures for one in verdict.findings if one.level == 'outputs' and one.passed is False]
    has_graphs = hasattr(detector.family, 'graphs')  # layers of a backbone are compared anyway
    if not failed or not verdict.bars.is_float32 or not has_graphs:
        return []
    rows = [row for row in failed if row.get('max_abs') and row.get('tolerance')]
    is_near = bool(rows) and max(row['max_abs'] / row['tolerance'] for row in rows) < NEAR
    refused = []
    for path in paths:
        try:
            model = files.load(path)
            metadata = Metadata.from_props({entry.key: entry.value for entry in model.metadata_props}, path)
            search = Search(compared_of(detector, metadata, images))
            place = locate(search, model, fresh=True)
        except Exception as error:  # also of the user's code
            refused.append(f'first difference: {Path(path).name}: not located: {one_line(error)[:200]}')
            continue
        lines = split_lines(*search.split()) if is_near else []
        if place or lines:
            return [f'first difference: {Path(path).name}: {place or "in no single node"}', *lines]
    return refused


def compared_of(
    detector: Detector,
    metadata: Metadata,
    images: Pictures | None = None,
    feeds: Mapping[str, np.ndarray] | None = None,
) -> Compared:
    """Return the modules that a file was exported from, and the inputs of the comparison."""
    of_pictures = images is not None
    compared = _of_pictures(detector, metadata, images) if of_pictures else _of_graph(detector, metadata)
    if feeds is not None:
        compared = dataclasses.replace(compared, feeds=dict(feeds), title='given inputs')
    metadata.spec.check_feeds(compared.feeds)
    return compared


def unseen(example: np.ndarray, seed: int) -> np.ndarray:
    """Return noisy values like `example`; booleans and integers other than pixels stay."""
    if example.dtype.kind != 'f' and example.dtype != np.uint8:
        return example.copy()
    rng = np.random.default_rng([7, seed])
    spread = float(example.std()) or 1.0
    values = example + JITTER * spread * rng.standard_normal(example.shape)
    return (np.abs(values) if example.min() >= 0 else values).astype(example.dtype)


class Search:
    """PyTorch's side of a comparison, run once; several graphs can be compared with it."""

    def __init__(self, compared: Compared, bars: findings.DiffBars | None = None) -> None:
        self.compared, self.bars = compared, bars or findings.DiffBars()
        self.constants, self.runner = Constants(), NodeRunner()
        self.records = _record(compared, self.bars)
        self.named = self.records.named()

    def compare(self, model: onnx.ModelProto, fresh: bool = True) -> findings.Comparison:
        program = Program(model, self.constants)
        references, graph_changes, notes = dict(self.named), [], []
        export = self._export if fresh else 'not asked for'
        inherited: set[str] = set()
        if isinstance(export, str):
            notes.append(f'no fresh export to compare with: {export}')
        else:
            clean, clean_walk, wrong = export
            pairs = align(program, clean)
            graph_changes = changes(program, clean, pairs)
            references.update(_references_from(pairs.tensors, clean_walk, wrong))
            inherited = {name for name, mate in pairs.tensors.items() if mate in wrong}
        self.walked = result = self._walk(program, references)
        module = functools.cache(functools.partial(self.records.module_path, program))
        notes += engine_notes(model, self.compared.feeds, result, self.bars)
        subject = dict(modules=len(self.records.recorder.calls), recorded=len(self.records.records))
        structure = [change for change in graph_changes if change.kind != 'metadata']
        comparison = findings.comparison_of(result, self.bars, structure, subject, notes, module)
        comparison.guessed = isinstance(export, str)
        for difference in comparison.differences:
            if difference.tensor in inherited:
                difference.evidence.append(
                    'a fresh export has it too: it comes from the export, not from a later change'
                )
        return comparison

    def split(self) -> tuple[list[Split], list[str]]:
        """Return the parts of the differences of the last file, see `split_of`."""
        return split_of(self.compared.stages, self.compared.feeds, self.records.records, self.walked)

    @functools.cached_property
    def _export(self) -> tuple[Program, Walk, set[str]] | str:
        try:
            program = Program(self.compared.fresh_export(), self.constants)
        except Mm2OnnxError as error:
            return one_line(error)
        result = self._walk(program, dict(self.named))
        wrong = {tensor for region in regions(result, self.bars.born) for tensor in region.tensors}
        return program, result, wrong

    def _walk(self, program: Program, references: dict[str, ReferenceTensor]) -> Walk:
        for _ in range(MAX_PAIRED_BY_PLACE):
            result = walk(program, self.compared.feeds, references, self.runner, self.records.lookup)
            paired = self.records.by_module(result)
            if not paired:
                for region in regions(result, self.bars.born):
                    paired = self.records.by_place(result, region.tensors[: -1 if region.ends else None])
                    if paired:
                        break
            if not paired:
                break
            references.update(paired)
        return result


def locate(search: Search, model: onnx.ModelProto, fresh: bool = False) -> str:
    """Return where a file first differs from PyTorch: node, part of the module, line of its code; or ''."""
    first = search.compare(model, fresh).first
    if first is None:
        return ''
    parts = [f'node {first.node} ({first.op_type}), tensor {first.tensor}']
    if part := first.module.removeprefix('module').removeprefix('.'):
        parts.append(f'module {part}')
    records = search.records.records
    if 0 <= first.record < len(records) and (line := records[first.record].line):
        parts.append(line)
    error = first.born if first.born is not None else first.error
    if error is not None:
        parts.append(f'relative error {error:.2e}')
    return ', '.join([*parts, *first.evidence[:1]])


def _record(compared: Compared, bars: findings.DiffBars) -> RecordIndex:
    parameters = (parameter for stage in compared.stages for parameter in stage.module.parameters())
    device = next((parameter.device for parameter in parameters), torch.device('cpu'))
    inputs = {name: torch.tensor(array, device=device) for name, array in compared.feeds.items()}  # copies
    recorder = record_stages(compared.stages, inputs)
    weights = {}
    for stage in compared.stages:
        state = stage.module.state_dict()
        weights.update({name: value.detach().cpu().numpy() for name, value in state.items()})
    return RecordIndex(recorder, weights, bars.born)


def _references_from(tensors: Mapping[str, str], clean: Walk, wrong: set[str]) -> dict[str, ReferenceTensor]:
    references = {}
    for name, mate in tensors.items():
        row = clean.rows.get(mate)
        if row is None:
            continue
        if row.reference is not None:
            value = clean.good.get(mate, row.reference.value)
            how = {'value': 'values'}.get(row.reference.how, row.reference.how)
            references[name] = dataclasses.replace(row.reference, value=value, how=how)
        elif mate not in wrong and isinstance(clean.good.get(mate), np.ndarray):
            references[name] = ReferenceTensor(clean.good[mate], '', '', 'export')
    return references


def _of_graph(detector: Detector, metadata: Metadata) -> Compared:
    """Return a graph of frames, sweeps or voxels, and seeded numbers like the trace's."""
    options = exported_options(detector.family, metadata.options)
    graphs = {
        graph.name: graph
        for graph in contract_of(detector.family, options).graphs(prepared(detector.model), options)
    }
    graph = graphs.get(metadata.form)
    if graph is None or graph.module is None:
        comparable = ', '.join(name for name, graph in graphs.items() if graph.module) or 'none'
        raise UsageError(
            f'the graph {metadata.form!r} cannot be compared with PyTorch tensor by tensor; for this '
            f'model, use {comparable}'
        )
    stage = Stage('', graph.module, tuple(graph.spec.input_names), tuple(graph.spec.output_names))
    examples = enumerate(graph.example.items())
    feeds = {name: unseen(tensor.cpu().numpy(), index) for index, (name, tensor) in examples}
    fresh = functools.partial(file_checks.of_graphs(detector, options), metadata.form)
    return Compared([stage], feeds, fresh, 'random numbers with the shapes of the traced inputs')


def _of_pictures(detector: Detector, metadata: Metadata, images: Pictures) -> Compared:
    """Return a graph of pictures, and the last input of `proof_inputs`."""
    family, options = detector.family, exported_options(detector.family, metadata.options)
    inputs = proof_inputs(detector, options, images)
    unseen_input = [case for case in inputs if not case.traced and not case.left_out][-1]
    arrays = family.feeds(unseen_input.images, rescale=True)
    arrays |= family.reference(detector.model).inner_inputs(arrays, options.form)
    (graph,) = family.graphs(prepared(detector.model), options)
    feeds = {name: arrays[name] for name in metadata.spec.input_names if name in arrays}
    return Compared(
        hosted(family, graph, options, detector.rule, detector.model).stages,
        metadata.spec.rounded(metadata.spec.with_required(feeds)),
        file_checks.of_images(detector, options, images[0][1], (options.height, options.width)),
        f'{unseen_input.name} ({unseen_input.sources[0][0]})',
        arrays,
    )


def _upstream_notes(detector: Detector, metadata: Metadata, search: Search) -> Iterator[str]:
    """Yield notes on outputs of pictures in which the exported modules leave the unpatched model."""
    output_names = [tensor.name for tensor in metadata.spec.outputs if tensor.compare == 'values']
    if not output_names:
        return
    options, compared = options_besides_form(detector, metadata), search.compared
    feeds = {**compared.beside, **compared.feeds}
    expected = detector.family.reference(detector.model).tensors(feeds, metadata.form, **options)
    stage_outputs = {name for stage in compared.stages for name in stage.outputs}
    for name in output_names:
        if name not in expected or name not in stage_outputs:
            continue
        error, reason = compare(search.named[name].value, expected[name])
        if error is not None and error > search.bars.free:
            yield (
                f'output {name}: the exported modules already differ from the unpatched model '
                f'(relative error {error:.2e}{"; " + reason if reason else ""}); look there first'
            )


def _differing_results(detector: Detector, metadata: Metadata, path: str, images: Pictures) -> str:
    """Run the user's test path; return the first result that the file lacks, or ''."""
    options = exported_options(detector.family, metadata.options, path)
    with build_backend('OnnxRuntimeBackend', path=path) as backend:
        for reference in references(detector, options, images[:1]):
            if failures := run_case(reference, backend).failures:
                return failures[0]
    return ''
