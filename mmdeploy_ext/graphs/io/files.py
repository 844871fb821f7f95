"""Reading and writing ONNX files; they are checked, and written whole or not at all. Needs onnx only."""

import ast
import contextlib
import copy
import functools
import gc
import math
import os
import re
import tempfile
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import onnx
from onnx import external_data_helper as external_data

from mmdeploy_ext.base.arrays import load_arrays
from mmdeploy_ext.base.dump import MANIFEST, load_dump
from mmdeploy_ext.base.errors import DataError, ModelFileError, UsageError, named
from mmdeploy_ext.base.files import (
    EXPORT_AGAIN,
    PROTOBUF_LIMIT,
    AnyPath,
    atomic_path,
    check_outputs,
    check_writable,
    is_special,
    path_in,
    read_onnx,
    replaced_files,
    will_read,
)
from mmdeploy_ext.graphs.io import types
from mmdeploy_ext.graphs.io.index import all_nodes, all_tensors, node_label, reads, writes
from mmdeploy_ext.spec.digest import check_whole, sealed

# Named tensors on disk, for graphs: files that other tools write as well.


def load_tensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read named tensors: an .npz file, a dump of this project, a .npy file, or a folder of .npy files."""
    path = Path(path)
    if path.is_dir():
        if (path / MANIFEST).is_file():
            return load_dump(path)[0]
        arrays = {}
        for file in sorted(path.glob('*.npy')):
            arrays |= load_arrays(file, unquote(file.stem))
        if not arrays:
            raise DataError(f'{path}: has no tensors; expected .npy files or a {MANIFEST}')
        return arrays
    if not path.is_file():
        raise DataError(f'{path}: no such file or folder of tensors; expected .npz, or a folder of .npy')
    return load_arrays(path, unquote(path.stem))


def save_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            array = np.asarray(array)
            array = array.astype(str) if array.dtype == object else array
            with archive.open(f'{name}.npy', 'w', force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


# The module of the PyTorch model that a node was exported from.
#
# Three sources, tried in this order:
# - metadata of the torch.export-based exporter: `pkg.torch.onnx.name_scopes`;
# - node names of the TorchScript exporter: '/backbone/layer1/layer1.0/conv1/Conv';
# - names of weights: a node that reads 'backbone.stem.conv.weight' belongs to 'backbone.stem.conv'. Older
#   exporters and other frameworks leave only these.


SCOPES = 'pkg.torch.onnx.name_scopes'
WEIGHTS = ('weight', 'bias', 'running_mean', 'gamma', 'in_proj_weight')
"""Last parts of names of weights."""
WRAPPER = 'model'
"""The attribute of the export wrappers that holds the detector; the paths of checkpoints begin below it."""


def module_of(node: onnx.NodeProto) -> tuple[str, str]:
    """Return (module name, source of the name), e.g. ('backbone.layer1.0.conv1', 'names')."""
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            try:
                scopes = ast.literal_eval(entry.value)
            except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
                scopes = None
            is_list = isinstance(scopes, list) and len(scopes) >= 2
            return (str(scopes[-2]) if is_list else ''), 'metadata'  # the last scope is the operation itself
    if '/' in node.name:
        return '.'.join(without_repetition(node.name.split('/')[:-1])), 'names'
    for name in node.input:
        module, dot, last = name.rpartition('.')
        if dot and last in WEIGHTS:
            return module, 'weights'
    return '', ''


def without_repetition(parts: Iterable[str]) -> list[str]:
    """Drop empty parts and containers that the next part repeats."""
    words: list[str] = []
    for part in filter(None, parts):
        if words and part.startswith(f'{words[-1]}.'):
            words.pop()
        words.append(part)
    return words


def plain_path(path: str) -> str:
    """Return a module's path below the detector, as in the keys of checkpoints."""
    parts = path.split('.')
    return '.'.join(parts[parts.index(WRAPPER) + 1 :]) if WRAPPER in parts else path


def module_path(node: onnx.NodeProto, modules: Collection[str] | None = None) -> str:
    """Return the path of a node's module, '' if unknown, from TorchScript's name or dynamo's metadata.

    `network/backbone/layer1/layer1.0/relu_1/Relu` is the second call of `backbone.layer1.0.relu`. With
    `modules`, the paths of the model's modules, the result is one of them (the nearest module around the
    node) or ''. None keeps numbers of calls and stages ('network').
    """
    path, source = module_of(node)
    if source == 'metadata':
        return plain_path(path)
    parts = without_repetition(node.name.split('/')[:-1])
    if modules is None:
        return plain_path('.'.join(parts))
    return _resolve(tuple(parts), frozenset(modules))


@functools.lru_cache(maxsize=4096)
def _resolve(parts: tuple[str, ...], modules: frozenset[str]) -> str:
    for path in _possible_paths(parts):
        if path in modules:
            return path
        longer = [module for module in modules if module.endswith(f'.{path}')]
        if len(longer) == 1:
            return longer[0]
    return ''


def _possible_paths(parts: Sequence[str]) -> Iterator[str]:
    for end in range(len(parts), 0, -1):
        for start in range(end):
            path = '.'.join(parts[start:end])
            yield plain_path(path)
            yield plain_path(re.sub(r'_\d+$', '', path))
            yield plain_path('.'.join(re.sub(r'_\d+$', '', part) for part in parts[start:end]))


CANNOT_READ = (ValueError, OSError, onnx.checker.ValidationError)
"""Errors that onnx raises if external data do not fit the model."""
ALIGNMENT = 4096
"""Bytes: tensors in a data file begin at multiples of it, so that they can be mapped into memory."""
SMALLEST_EXTERNAL = 1024
"""Bytes: tensors of this size or less (shapes, axes) stay in the model file, which shape inference reads."""


def read(path: AnyPath) -> onnx.ModelProto:
    """Read an ONNX file unchanged, broken graphs too, without its external data."""
    model = read_onnx(path)
    if not model.graph.node:
        raise ModelFileError(f'{path}: holds no graph: expected an ONNX file with nodes; {EXPORT_AGAIN}')
    return model


def load(path: AnyPath) -> onnx.ModelProto:
    """Read an ONNX file with all its weights and make sure that it can be worked on."""
    model = read(path)
    check_opsets(model, path)
    _load_external(model, Path(path))
    check_order(model, path)
    return model


def external_files(model: onnx.ModelProto, folder: Path) -> dict[str, Path]:
    """Tensor name -> path of its data file, of all tensors of a model that are stored outside of it."""
    locations = {}
    for tensor in all_tensors(model):
        if external_data.uses_external_data(tensor):
            entries = {entry.key: entry.value for entry in tensor.external_data}
            place = f'the external data of {tensor.name!r}'
            try:
                locations[tensor.name] = path_in(folder, entries.get('location'), place, below=True)
            except DataError as error:
                raise ModelFileError(f'{error}; {EXPORT_AGAIN}') from error
    return locations


def _load_external(model: onnx.ModelProto, path: Path) -> None:
    with named(path):
        files = external_files(model, path.parent)
    will_read(f'the weights of {path}', files.values())
    for name, file in files.items():
        if not file.is_file():
            raise ModelFileError(
                f'{path}: the weights of {name!r} are in {file}, which is missing; put that file beside '
                'the model under this name'
            )
    stored = [tensor for tensor in all_tensors(model) if tensor.name in files]
    try:
        external_data.load_external_data_for_model(model, os.fspath(path.parent))
        short = [tensor for tensor in stored if len(tensor.raw_data) != _byte_size(tensor)]
    except CANNOT_READ as error:
        short, reason = stored, f' ({error})'
    else:
        reason = ''
    if short:
        name = short[0].name
        raise ModelFileError(
            f'{path}: the weights of {name!r} in {files[name]} cannot be read; the file is cut short or '
            f'belongs to another model{reason}'
        )


def _byte_size(tensor: onnx.TensorProto) -> int:
    return types.byte_size(tensor.data_type, math.prod(tensor.dims))


def save(model: onnx.ModelProto, path: AnyPath, *, inputs: Sequence[AnyPath] = ()) -> list[Path]:
    """Check a model, which stays unchanged, and write it; an older file remains until the new one is whole.

    Returns:
        The files that were written, the model first.

    Raises:
        UsageError: `path` is one of `inputs`, which the model was made from, or cannot be written.
        ModelFileError: the nodes are not in order, the model is not valid (the checker's message), or one of
            `inputs` is damaged.
        Mm2OnnxError: writing fails, as on a full disk; the older file stays.
    """
    path = Path(path)
    data = data_of(path)
    targets = [path, data] if is_large(model) else [path]
    check_targets(targets, inputs)
    for source in inputs:  # a new digest would hide the damage
        check_whole(source)
    if len(targets) > 1:
        check_pair(path)
    check_order(model, path)
    model = with_output_shapes(model)
    if len(targets) > 1:
        save_external(model, path, data)
        return targets
    check_valid(model, path)
    with atomic_path(path) as temporary:
        temporary.write_bytes(sealed(model.SerializeToString()))
    return targets


def data_of(path: Path) -> Path:
    """File beside a model that has the weights of a large one."""
    return path.with_name(f'{path.name}.data')


def check_pair(path: Path) -> None:
    """Raise UsageError for a place where a large model and the file of its weights cannot be written."""
    if path.is_symlink() or is_special(path):
        name = data_of(path).name
        raise UsageError(
            f'{path}: a model of this size stores its weights in {name} beside it; write to a file'
        )
    check_writable(data_of(path))


def with_output_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    missing = names_without_shape(model.graph.output)
    if is_sparse(model) or not missing:
        return model
    result, inferred = copy.deepcopy(model), types.infer(model)
    for value in result.graph.output:
        if value.name in missing and types.shape(inferred.get(value.name)) is not None:
            value.type.CopyFrom(inferred[value.name])
    return result


def check_targets(targets: Sequence[AnyPath], inputs: Sequence[AnyPath]) -> None:
    """Raise UsageError if one of `targets` is one of `inputs` or its external data, or cannot be written."""
    check_outputs({'--out': targets}, {'the input': inputs})
    for target in targets:
        check_writable(target)


def save_external(model: onnx.ModelProto, path: Path, data: Path, *, checked: bool = True) -> None:
    """Write a model to `path` and its large tensors to `data`, which lies beside it."""
    import onnx_ir

    layout = dict(size_threshold_bytes=SMALLEST_EXTERNAL, alignment=ALIGNMENT, align_threshold=0)
    with replaced_files(path) as folder:
        new, new_data = folder / path.name, folder / data.name
        new_data.touch()
        onnx_ir.save(onnx_ir.from_proto(model), new, external_data=data.name, **layout)
        gc.collect()  # its graph, which holds the weights, refers to itself
        if checked and not is_sparse(model):
            check_valid(new, path)
        new.write_bytes(sealed(new.read_bytes(), folder))


def is_large(model: onnx.ModelProto) -> bool:
    tensors = sum(len(tensor.raw_data) or tensor.ByteSize() for tensor in all_tensors(model))
    nodes = sum(len(node.input) + len(node.output) for node in all_nodes(model)) * 64
    return tensors + nodes + sum(value.ByteSize() for value in model.graph.value_info) > PROTOBUF_LIMIT


def write(model: onnx.ModelProto, path: Path) -> None:
    """Write a model to `path` unchecked, for another program, with `NAME.data` beside it if it is large."""
    if is_large(model):
        save_external(model, path, data_of(path), checked=False)
    else:
        path.write_bytes(sealed(model.SerializeToString()))


@contextlib.contextmanager
def openable(model: onnx.ModelProto) -> Iterator[str | bytes]:
    """Yield the bytes of a model, or a file if it is too large for one message."""
    if not is_large(model):
        yield model.SerializeToString()
        return
    with tempfile.TemporaryDirectory(prefix='mm2onnx-') as folder:
        path = Path(folder, 'model.onnx')
        write(model, path)
        yield str(path)


DEFAULT_DOMAINS = ('', 'ai.onnx')
"""Both are names of ONNX's own domain."""
SPARSE_OPERATORS = ('SparseConvolution', 'ScatterDense')
"""Operators of the libspconv dialect."""


def is_sparse(model: onnx.ModelProto) -> bool:
    """Return whether a model is in the libspconv dialect: its main graph has one of `SPARSE_OPERATORS`."""
    return any(node.op_type in SPARSE_OPERATORS for node in model.graph.node)


def check_ordinary(model: onnx.ModelProto) -> None:
    """Raise ModelFileError for a graph of the libspconv dialect, before its types or numbers are used."""
    if is_sparse(model):
        raise ModelFileError(
            'the model is a sparse graph of the libspconv dialect, which has no types and does not run in '
            'ONNX Runtime; its portable form (`export_scn.py --target portable`) can be cut and run'
        )


def check_opsets(model: onnx.ModelProto, name: AnyPath) -> None:
    """Raise ModelFileError for a model without opsets, or of a version that is newer than installed onnx."""
    if not model.opset_import:
        raise ModelFileError(f'{name}: has no opset; it was cut short or is not an ONNX file: {EXPORT_AGAIN}')
    newest = onnx.defs.onnx_opset_version()
    for entry in model.opset_import:
        if entry.domain in DEFAULT_DOMAINS and entry.version > newest:
            raise ModelFileError(
                f'{name}: has opset {entry.version}, but onnx {onnx.__version__} supports opsets up to '
                f'{newest}; upgrade onnx or export with an older opset'
            )
    if model.ir_version > onnx.IR_VERSION:
        raise ModelFileError(
            f'{name}: is of IR version {model.ir_version}, and onnx {onnx.__version__} knows versions up to '
            f'{int(onnx.IR_VERSION)}; upgrade onnx'
        )


def check_order(model: onnx.ModelProto, name: AnyPath = 'the model') -> None:
    """Raise ModelFileError for nodes of the main graph out of order, or with an input that nothing makes."""
    graph = model.graph
    available = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    producers = {output: position for position, node in enumerate(graph.node) for output in writes(node)}
    for position, node in enumerate(graph.node):
        for tensor in reads(node):
            if tensor in available:
                continue
            if tensor not in producers:
                reason = ', which is not an output of a node, an input or an initializer'
            else:
                producer = node_label(graph.node, producers[tensor])
                reason = f' before node {producer} has written it: nodes must be in topological order'
            reader = node_label(graph.node, position)
            raise ModelFileError(f'{name}: node {reader} ({node.op_type}) reads {tensor!r}{reason}')
        available.update(writes(node))
    missing = [value.name for value in graph.output if value.name not in available]
    if missing:
        raise ModelFileError(f'{name}: no node computes the outputs {", ".join(missing)}')


def names_without_shape(values: Sequence[onnx.ValueInfoProto]) -> list[str]:
    return [
        value.name
        for value in values
        if value.type.HasField('tensor_type') and not value.type.tensor_type.HasField('shape')
    ]


def check_valid(model: onnx.ModelProto | Path, name: AnyPath) -> None:
    """Raise ModelFileError, with onnx.checker's message, for a model, or a file, that is not valid ONNX."""
    if isinstance(model, onnx.ModelProto) and is_sparse(model):
        return
    opened = openable(model) if isinstance(model, onnx.ModelProto) else contextlib.nullcontext(model)
    try:
        with opened as source:
            onnx.checker.check_model(source)
    except onnx.checker.ValidationError as error:
        hint = ''
        if isinstance(model, onnx.ModelProto):
            names = names_without_shape((*model.graph.input, *model.graph.output))
            hint = f' (of {", ".join(names)}; graph.py set-shape states those of inputs)' if names else ''
        raise ModelFileError(f'{name}: the result would not be a valid model: {error}{hint}') from error
