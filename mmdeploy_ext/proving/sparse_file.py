"""Checks of a sparse backbone's file against its model and engine."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.errors import Mm2OnnxError, ModelFileError, UsageError
from mmdeploy_ext.base.violations import WARNING, errors
from mmdeploy_ext.exporting.int8.calibrators import weight_amax
from mmdeploy_ext.exporting.sparse import libspconv, libspconv_contract, portable
from mmdeploy_ext.exporting.sparse.fold import fold, reorder
from mmdeploy_ext.exporting.sparse.ranges import Ranges
from mmdeploy_ext.families import backbone_files as deploy
from mmdeploy_ext.families.base import exported_options
from mmdeploy_ext.graphs import signature
from mmdeploy_ext.graphs.io import files
from mmdeploy_ext.graphs.io.files import is_sparse
from mmdeploy_ext.graphs.io.index import count_nodes
from mmdeploy_ext.proving.file_checks import (
    check_inference,
    check_not_random,
    check_valid,
    differing_facts,
)
from mmdeploy_ext.runtime.sparse.ir import Add, SparseConvolution, differences
from mmdeploy_ext.spec.metadata import PREFIX, check_entries, entries_of, read_entry
from mmdeploy_ext.spec.results import SHOWN, Check, GraphDifference, GraphResult, first_lines
from mmdeploy_ext.spec.tensors import written_precision
from mmdeploy_ext.spec.verdict import AS_IN_CONFIG

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnx

    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.runtime.sparse.ir import SparseGraph
    from mmdeploy_ext.spec.options import Options

UNCOMPARED = ('about', 'ir_version', 'onnx_package')
"""Keys of a node list that are not compared."""


@dataclasses.dataclass(frozen=True)
class SparseFile:
    """A file of a sparse backbone, and the graphs that it is compared with.

    Attributes:
        export_options: resolved options of its export.
        traced: the model's graph before folding.
        expected: the graph that the file should hold, in float32.
        exact: folded in float32, if the file's convolutions were folded in float16; else `expected`.
        ranges: the check of the weights' ranges, or None.
        name: '': the model is one file.
    """

    detector: Detector
    path: str
    model: onnx.ModelProto
    export_options: Options
    traced: SparseGraph
    expected: SparseGraph
    exact: SparseGraph
    ranges: Check | None = None
    name: ClassVar[str] = ''

    @property
    def options(self) -> dict[str, Any]:
        return read_fact(self.model, self.path, 'options')

    @property
    def edits(self) -> list[str]:
        return read_fact(self.model, self.path, 'edits')

    @property
    def hashes(self) -> dict[str, str]:
        titles = 'checkpoint', 'config'
        return {title: read_fact(self.model, self.path, f'{title}_sha256') for title in titles}

    @property
    def model_classes(self) -> list[dict[str, Any]]:
        return read_fact(self.model, self.path, 'model_classes')

    @property
    def same_order(self) -> bool:
        return self.export_options.order == self.detector.settings.order

    @property
    def precision(self) -> str:
        if self.export_options.target == 'libspconv':
            return 'int8' if deploy.has_int8(self.export_options) else 'fp16'
        return written_precision(self.model)


def read_fact(model: onnx.ModelProto, path: str, name: str) -> Any:
    """Return an entry of a file's metadata; ModelFileError: it is damaged."""
    return read_entry(entries_of(model.metadata_props), name, path)


def file_options(model: onnx.ModelProto, path: str) -> dict[str, Any]:
    """Return the options, with `cfg_options`, of a file's export; check all entries."""
    check_entries(entries_of(model.metadata_props), path)
    return read_fact(model, path, 'options')


def read_sparse_file(detector: Detector, path: str, ranges: Ranges | None) -> SparseFile:
    """Read a file and make its expected graphs."""
    model = files.read(path)
    if not is_sparse(model):
        model = files.load(path)
    option_values = file_options(model, path)
    family = read_fact(model, path, 'family')
    if family != detector.family.name:
        raise ModelFileError(
            f'{path}: is a model of family {family!r}; {detector.config} is {detector.family.name!r}'
        )
    options = exported_options(detector.family, option_values, path)
    traced = deploy.trace(detector)
    are_recorded = ranges is None and deploy.has_precision(options)
    if are_recorded and any(entry.key == f'{PREFIX}ranges' for entry in model.metadata_props):
        try:
            ranges = Ranges.from_json(read_fact(model, path, 'ranges'), f'{path}: {PREFIX}ranges')
        except UsageError as error:
            raise ModelFileError(str(error)) from error
    expected = deploy.make_graph(traced, options, detector.family, ranges)
    is_rounded = options.fold == 'fp16' or deploy.fp16_modules(options, detector.family)
    exact = reorder(fold(traced, 'fp32'), options.order) if is_rounded else expected
    ranges_check = None
    if are_recorded and ranges is not None:
        ranges_check = weight_ranges_check(detector, traced, ranges)
    return SparseFile(detector, path, model, options, traced, expected, exact, ranges_check)


def compare_graph(file: SparseFile) -> GraphResult:
    """Compare the graph of a file with the graph that its model gives."""
    if file.export_options.target == 'libspconv':
        found = dialect_differences(file.path, file.model, file.expected)
    else:
        fresh = portable.to_onnx(file.expected, form=file.export_options.form)
        found = differing_facts(file.model, fresh) or signature.differences(file.model, fresh)
    return GraphResult('', count_nodes(file.model), not found, tuple(found))


def dialect_differences(path: str, model: onnx.ModelProto, expected: SparseGraph) -> list[GraphDifference]:
    """Return differences of a libspconv file from its model's graph, with names and order of nodes."""
    file_list, model_list = libspconv.to_node_list(model), libspconv.to_node_list(libspconv.to_onnx(expected))
    keys = [key for key in dict.fromkeys([*file_list, *model_list]) if key not in UNCOMPARED]
    lines = [line for key in keys for line in _differing(file_list.get(key), model_list.get(key), key)]
    try:
        lines += differences(libspconv.read(path), as_written(expected))
    except Mm2OnnxError as error:
        lines.append(f'file: cannot be read: {error}')
    parts = (line.partition(': ') for line in lines)
    return [GraphDifference('node', place, '', detail) for place, _, detail in parts]


def as_written(graph: SparseGraph) -> SparseGraph:
    """Return the graph with fp16 weights and float32 ranges, as in a libspconv file."""

    def rounded(node: Any) -> Any:
        changes: dict[str, Any] = {}
        if isinstance(node, SparseConvolution | Add) and node.input_range is not None:
            changes['input_range'] = float(np.float32(node.input_range))
        if isinstance(node, SparseConvolution):
            changes.update(weight=node.weight.astype(np.float16), bias=node.bias.astype(np.float16))
            if node.weight_ranges is not None:
                changes['weight_ranges'] = np.asarray(node.weight_ranges, np.float32)
        return dataclasses.replace(node, **changes) if changes else node

    return dataclasses.replace(graph, nodes=tuple(map(rounded, graph.nodes)))


def _differing(value: Any, expected: Any, place: str) -> Iterator[str]:
    if isinstance(value, dict) and isinstance(expected, dict):
        for key in dict.fromkeys([*value, *expected]):
            if key in UNCOMPARED:
                continue
            if key not in value or key not in expected:
                yield f'{place}.{key}: {"missing" if key not in value else "not expected"}'
            else:
                yield from _differing(value[key], expected[key], f'{place}.{key}')
    elif isinstance(value, list) and isinstance(expected, list):
        if len(value) != len(expected):
            yield f'{place}: {len(value)} entries, expected {len(expected)}'
        for index, (entry, expected_entry) in enumerate(zip(value, expected, strict=False)):
            name = entry.get('name', index) if isinstance(entry, dict) else index
            yield from _differing(entry, expected_entry, f'{place}[{name}]')
    elif value != expected and (value == value or expected == expected):  # NaN on both sides is equal
        yield f'{place}: {value!r}, expected {expected!r}'


def compare_node_lists(nodes: Mapping[str, Any], expected: Mapping[str, Any], source: str) -> list[Check]:
    """Compare two node lists; return a check of nodes and one of initializers."""
    if not isinstance(expected, dict):
        raise UsageError(f'{source}: is not a node list; expected an object with nodes and initializers')
    checks, parts = [], dict(nodes=('meta', 'inputs', 'outputs', 'nodes'), initializers=('initializers',))
    for title, keys in parts.items():
        wrong = [line for key in keys for line in _differing(nodes.get(key), expected.get(key), key)]
        size = len(nodes.get(keys[-1], ()))
        detail = f'{size} {title}' + (' with name, shape and SHA-256' if title == 'initializers' else '')
        checks.append(Check(f'{title} equal {source}', not wrong, first_lines(wrong) or detail))
    return checks


def check_dialect(
    path: str, model: onnx.ModelProto, max_voxels: int | None = None
) -> tuple[list[Check], list[str]]:
    """Check a file against the contract of libspconv's engine; return the check, and warnings."""
    violations = libspconv_contract.check(model, max_voxels=max_voxels, name=path)
    wrong = [f'{entry.node or "file"}: {entry.rule}: {entry.message}' for entry in errors(violations)]
    warnings = [entry for entry in violations if entry.severity == WARNING]
    notes = [f'contract: {entry.node or "file"}: {entry.message}' for entry in warnings[:SHOWN]]
    if len(warnings) > SHOWN:
        notes.append(f'contract: {len(warnings) - SHOWN} more warnings; run {tool("check")} to see them')
    count = f'{len(model.graph.node)} nodes by the rules of the engine'
    return [Check("contract of NVIDIA's engine", not wrong, first_lines(wrong) or count)], notes


def check_portable(model: onnx.ModelProto) -> list[Check]:
    foreign = sorted({node.op_type for node in model.graph.node if node.domain not in ('', 'ai.onnx')})
    opsets = {entry.domain or 'ai.onnx': entry.version for entry in model.opset_import}
    detail = f'{", ".join(foreign)} are not' if foreign else f'opset {opsets.get("ai.onnx")}'
    standard = Check('standard operators only', not foreign, detail)
    return [check_valid(model), check_inference(model), standard, check_not_random(model)]


def weight_ranges_check(detector: Detector, traced: SparseGraph, ranges: Ranges) -> Check:
    """Check that all ranges come from folded or unfolded kernels, or the checkpoint."""
    unfolded = {node.module: node.weight for node in traced.convolutions()}
    in_checkpoint, wrong = deploy.checkpoint_ranges(detector), []
    for node in fold(traced, 'fp32').convolutions():
        kernels = node.weight, unfolded.get(node.module, node.weight)
        candidates = [np.asarray(weight_amax(kernel), np.float32) for kernel in kernels]
        if in_checkpoint:
            candidates.append(np.asarray(in_checkpoint.weight_amax(node.name), np.float32))
        rounded = [amax.astype(np.float16).astype(np.float32) for amax in candidates]
        recorded = ranges.weight_amax(node.name)
        if not any(np.array_equal(recorded, amax) for amax in (*candidates, *rounded)):
            largest, expected = float(recorded.max()), float(candidates[0].max())
            wrong.append(f'{node.name}: {largest:.6g}, expected {expected:.6g} at most')
    return Check('ranges of the weights as computed from the weights', not wrong, '; '.join(wrong)[:300])


def metadata_check(file: SparseFile) -> Check:
    props = deploy.metadata_props(file.detector, file.export_options)
    facts = {name: read_fact(file.model, file.path, name) for name in ('form', 'voxels')}
    expected = {name: read_entry(props, name, file.path) for name in facts}
    wrong = [f'{name}: the file says {fact}' for name, fact in facts.items() if fact != expected[name]]
    if file.export_options.int8_fp16_io and file.export_options.precision != 'int8':
        wrong.append('options: int8_fp16_io requires precision int8')
    return Check(f'form and voxels {AS_IN_CONFIG}', not wrong, '; '.join(wrong)[:300])
