"""Reading and writing ONNX files: damaged ones are refused by name, files are checked and written atomically.

Needs onnx and numpy only. Where a check takes `name`, it is the file that the model is from, for the message.

The libspconv dialect: NVIDIA's libspconv, an engine of sparse convolutions, reads files in ONNX's format
whose operators and attributes are its own, and which are no valid ONNX.
"""

import contextlib
import copy
import graphlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
from onnx import external_data_helper as external_data
from onnx import numpy_helper

from mmdeploy_ext.core.errors import ModelFileError, shape_text, shortened
from mmdeploy_ext.core.files import (
    EXPORT_AGAIN,
    PROTOBUF_LIMIT,
    AnyPath,
    atomic_path,
    check_outputs,
    check_writable,
    external_locations,
    read_onnx,
)
from mmdeploy_ext.graph.io import types
from mmdeploy_ext.graph.io.index import all_nodes, all_tensors, node_label, reads, writes

CANNOT_READ = (ValueError, OSError, onnx.checker.ValidationError)
"""Errors that onnx raises if external data are not what the model states."""
ALIGNMENT = 4096
"""Bytes: tensors in a data file begin at multiples of it, so that they can be mapped into memory."""
SMALLEST_EXTERNAL = 1024
"""Bytes: tensors of this size or less (shapes, axes) stay in the model file, which shape inference reads.

`read_shapes` takes it as a number of elements.
"""


def read(path: AnyPath) -> onnx.ModelProto:
    """Read an ONNX file as it is, broken graphs too, without its external data.

    Raises:
        ModelFileError: no such file, one that cannot be read or is larger than protobuf can hold, is no ONNX
            file, has no node in its main graph, or a name that is not UTF-8.
        UsageError: it is a pipe or a device.
    """
    model = read_onnx(path)
    if not model.graph.node:
        raise ModelFileError(f'{path}: holds no graph: expected an ONNX file with nodes; {EXPORT_AGAIN}')
    check_names(model, path)
    return model


def read_shapes(path: AnyPath) -> onnx.ModelProto:
    """Read an ONNX file as `read` does, and of its external data the small tensors: shapes, not weights.

    Small are tensors of up to `SMALLEST_EXTERNAL` elements. Those whose data are missing or damaged stay
    external. The errors are those of `read`.
    """
    model = read(path)
    for tensor in all_tensors(model):
        if external_data.uses_external_data(tensor) and math.prod(tensor.dims) <= SMALLEST_EXTERNAL:
            with contextlib.suppress(*CANNOT_READ):
                external_data.load_external_data_for_tensor(tensor, os.fspath(Path(path).parent))
                tensor.data_location = onnx.TensorProto.DEFAULT
                tensor.ClearField('external_data')
    return model


def load(path: AnyPath) -> onnx.ModelProto:
    """Read an ONNX file with all its weights and make sure that it can be worked on.

    Raises:
        ModelFileError: missing, empty, corrupt; external data missing; a tensor with more or fewer bytes than
            its shape takes; an opset that the installed onnx does not know; nodes in a cycle or out of
            order; a tensor that nothing makes; and what `read` refuses.
        UsageError: it is a pipe or a device.
    """
    model = read(path)
    check_opsets(model, path)
    _load_external(model, Path(path))
    check_bytes(model, path)
    check_order(model, path)
    return model


def external_files(model: onnx.ModelProto, folder: Path) -> dict[str, Path]:
    """Return tensor name -> path of its data file, of all tensors of a model that are stored outside of it.

    `folder` is that of the model's file; a tensor that names no file has `folder` itself as its path. The
    files need not exist.
    """
    locations = {}
    for tensor in all_tensors(model):
        if external_data.uses_external_data(tensor):
            entries = {entry.key: entry.value for entry in tensor.external_data}
            locations[tensor.name] = folder / entries.get('location', '')
    return locations


def _load_external(model: onnx.ModelProto, path: Path) -> None:
    files = external_files(model, path.parent)
    for name, file in files.items():
        if not file.is_file():
            raise ModelFileError(
                f'{path}: the weights of {name!r} are in {file}, which is not there; put that file beside '
                f'the model under this name'
            )
    if not files:
        return
    try:
        external_data.load_external_data_for_model(model, os.fspath(path.parent))
    except CANNOT_READ as error:
        names = ', '.join(sorted({file.name for file in files.values()}))
        raise ModelFileError(
            f'{path}: its external data ({names}) cannot be read; was it cut short, or is it of another '
            f'model? ({error})'
        ) from error


def save(model: onnx.ModelProto, path: AnyPath, *, inputs: Sequence[AnyPath] = ()) -> list[Path]:
    """Check a model, which stays as it is, and write it; an older file remains until the new one is whole.

    A model that is too large for one protobuf message gets its large tensors in `NAME.data` beside it, or in
    `NAME.2.data` where the old model uses the former. An output that states no shape gets the inferred one. A
    missing folder is made. Graphs of the libspconv dialect are no valid ONNX: of these only the order of the
    nodes is checked.

    Returns:
        The files that were written, the model first.

    Raises:
        UsageError: `path` is one of `inputs`, which the model was made from, or cannot be written.
        ModelFileError: the nodes are not in order, or the model is not valid: the checker's message.
        Mm2OnnxError: writing fails, as on a full disk; the older file stays.
    """
    path = Path(path)
    external = is_large(model)
    targets = [path]
    if external:
        used = external_locations(path) if path.exists() else ()
        free = [data for data in _data_paths(path) if data.name not in used]
        targets.append(free[0] if free else _data_paths(path)[0])
    check_targets(targets, inputs)
    check_order(model, path)
    model = with_output_shapes(model)
    if external:
        save_external(model, *targets)
        return targets
    check_valid(model, path)
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return targets


def with_output_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model whose outputs have the inferred types and shapes if they state no shape.

    ONNX Runtime runs files without them, and some exporters write such; onnx calls them not valid. An output
    whose rank cannot be inferred stays as it is. The model itself is returned if no shape is missing or if it
    is of the libspconv dialect, else a copy.
    """
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
    check_outputs({'--output': targets}, {'the input': inputs})
    for target in targets:
        check_writable(target)


def save_external(model: onnx.ModelProto, path: Path, data: Path, *, checked: bool = True) -> None:
    """Write a model to `path` and its large tensors to `data`, which lies beside it.

    Large are initializers of more than `SMALLEST_EXTERNAL` bytes, also of bodies; values of Constant nodes
    stay in the model's file. Data files of an older model at `path`, if they have a name that `save` gives,
    are removed at the end. A missing folder is made.

    Raises:
        ModelFileError: `checked`, and the model is not valid; files that were there stay. The libspconv
            dialect is not checked.
    """
    import onnx_ir

    outdated = external_locations(path) & {data_path.name for data_path in _data_paths(path)} - {data.name}
    with (
        atomic_path(path) as temporary,
        atomic_path(data) as temporary_data,
        _folder_beside(path) as folder,
    ):
        new, new_data = folder / path.name, folder / data.name
        new_data.touch()
        layout = dict(size_threshold_bytes=SMALLEST_EXTERNAL, alignment=ALIGNMENT, align_threshold=0)
        onnx_ir.save(onnx_ir.from_proto(model), new, external_data=data.name, **layout)
        if checked and not is_sparse(model):
            check_valid(new, path)
        new.replace(temporary)
        new_data.replace(temporary_data)
    for name in outdated:
        path.with_name(name).unlink(missing_ok=True)


def _data_paths(path: Path) -> tuple[Path, Path]:
    return path.with_name(f'{path.name}.data'), path.with_name(f'{path.name}.2.data')


@contextlib.contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """Yield a folder for the time of the body; that of a killed process goes with its temporary files."""
    folder = path.with_name(f'.{path.name}.folder.{os.getpid()}.part')
    folder.mkdir(exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_large(model: onnx.ModelProto) -> bool:
    """Return whether a model has to be written with external data.

    Its size is counted in parts, because one message ends at 2 GiB.
    """
    tensors = sum(len(tensor.raw_data) or tensor.ByteSize() for tensor in all_tensors(model))
    nodes = sum(len(node.input) + len(node.output) for node in all_nodes(model)) * 64
    return tensors + nodes + sum(value.ByteSize() for value in model.graph.value_info) > PROTOBUF_LIMIT


def write(model: onnx.ModelProto, path: Path) -> None:
    """Write a model to `path` unchecked, for another program, with `NAME.data` beside it if it is large.

    The write is not atomic unless the model is large; the folder has to be there.
    """
    if is_large(model):
        save_external(model, path, path.with_name(f'{path.name}.data'), checked=False)
    else:
        path.write_bytes(model.SerializeToString())


@contextlib.contextmanager
def openable(model: onnx.ModelProto) -> Iterator[str | bytes]:
    """Yield what ONNX Runtime opens: the bytes of a model, or a file if it is too large for one message.

    The file is given as its path, and removed at the end of the body.
    """
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
_DTYPES = onnx.TensorProto
WHOLE_BYTES = frozenset(range(_DTYPES.FLOAT, _DTYPES.BFLOAT16 + 1))
WHOLE_BYTES -= {_DTYPES.STRING, _DTYPES.COMPLEX64, _DTYPES.COMPLEX128}
"""Data types whose elements are single numbers of 8 bits and more, without float8."""


def is_sparse(model: onnx.ModelProto) -> bool:
    """Return whether a model is in the libspconv dialect: its main graph has one of `SPARSE_OPERATORS`."""
    return any(node.op_type in SPARSE_OPERATORS for node in model.graph.node)


def check_ordinary(model: onnx.ModelProto) -> None:
    """Raise ModelFileError for a graph of the libspconv dialect, before its types or numbers are used."""
    if is_sparse(model):
        raise ModelFileError(
            'the model is a sparse graph of the libspconv dialect, which has no types and runs in no ONNX '
            'Runtime; its portable form (`export_scn.py --target portable`) can be cut and run'
        )


def check_opsets(model: onnx.ModelProto, name: AnyPath) -> None:
    """Raise ModelFileError for a model without opsets, or of a version that is newer than the installed onnx.

    The versions are those of ONNX's own opset and of the IR; opsets of other domains are not looked at.
    """
    if not model.opset_import:
        raise ModelFileError(
            f'{name}: states no opset; it was cut short, or is not an ONNX file: {EXPORT_AGAIN}'
        )
    newest = onnx.defs.onnx_opset_version()
    for entry in model.opset_import:
        if entry.domain in DEFAULT_DOMAINS and entry.version > newest:
            raise ModelFileError(
                f'{name}: is of opset {entry.version}, and onnx {onnx.__version__} knows opsets up to '
                f'{newest}; upgrade onnx or export with an older opset'
            )
    if model.ir_version > onnx.IR_VERSION:
        raise ModelFileError(
            f'{name}: is of IR version {model.ir_version}, and onnx {onnx.__version__} knows versions up to '
            f'{int(onnx.IR_VERSION)}; upgrade onnx'
        )


def check_names(model: onnx.ModelProto, name: AnyPath) -> None:
    """Raise ModelFileError for a name that is not UTF-8, which protobuf gives as bytes.

    The names are those of nodes, of their tensors and attributes, and of constants, also in bodies and
    functions; and of the main graph itself, its inputs, outputs, stated inner tensors and their axes.
    """
    for owner, text in _names(model):
        if isinstance(text, bytes):
            raise ModelFileError(
                f'{name}: the name of {owner} is not UTF-8: {shortened(text)}; {EXPORT_AGAIN}'
            )


def _names(model: onnx.ModelProto) -> Iterator[tuple[str, str | bytes]]:
    """Yield what has a name, and the name."""
    for place, node in enumerate(all_nodes(model)):
        for text in (node.name, node.op_type, node.domain, node.overload):
            yield f'node {place}', text
        for text in (*node.input, *node.output):
            yield f'a tensor of node {place}', text
        for attribute in node.attribute:
            yield f'an attribute of node {place}', attribute.name
    for tensor in all_tensors(model):
        yield 'a constant', tensor.name
    graph = model.graph
    yield 'the graph', graph.name
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield 'a tensor', value.name
        for axis in value.type.tensor_type.shape.dim:
            yield f'an axis of {value.name}', axis.dim_param


def check_bytes(model: onnx.ModelProto, name: AnyPath) -> None:
    """Raise ModelFileError for a constant with more or fewer bytes than its shape takes, by its name.

    The constants are those of `all_tensors`; external data has to be loaded before. Of texts, complex
    numbers, float8, and of types below 8 bits that are not stored as raw data, the values have to be
    readable. A data type that onnx does not know is refused.
    """
    for tensor in all_tensors(model):
        is_packed = types.type_name(tensor.data_type) in types.PACKED_BITS and tensor.HasField('raw_data')
        if tensor.data_type not in WHOLE_BYTES and not is_packed:
            try:
                numpy_helper.to_array(tensor)
            except (KeyError, TypeError, ValueError) as error:
                raise ModelFileError(
                    f'{name}: the values of {tensor.name!r} cannot be read ({error}): {EXPORT_AGAIN}'
                ) from error
            continue
        stored, expected = len(tensor.raw_data), types.byte_size(tensor.data_type, math.prod(tensor.dims))
        if not tensor.HasField('raw_data'):
            field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
            stored = types.byte_size(tensor.data_type, len(getattr(tensor, field)))
        if stored != expected:
            raise ModelFileError(
                f'{name}: the weights of {tensor.name!r} are {stored} bytes, and its shape '
                f'{shape_text(tensor.dims)} takes {expected}; they were cut short, or are of another model: '
                f'{EXPORT_AGAIN}'
            )


def check_order(model: onnx.ModelProto, name: AnyPath = 'the model') -> None:
    """Raise ModelFileError for nodes in a cycle, out of order, or that read what nothing makes.

    They are the nodes of the main graph, with what their bodies read from outside; also an output of the
    graph that nothing makes is an error.
    """
    graph = model.graph
    available = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    available.update(entry.values.name for entry in graph.sparse_initializer)
    producers = {output: position for position, node in enumerate(graph.node) for output in writes(node)}
    for position, node in enumerate(graph.node):
        for tensor in reads(node):
            if tensor in available:
                continue
            if tensor not in producers:
                reason = ', which no node, input or initializer gives'
            elif cycle := _cycle(graph, producers):
                reason = f', which depends on itself: {" -> ".join(cycle)} is a cycle'
            else:
                producer = node_label(graph.node, producers[tensor])
                reason = f' before node {producer} has written it: nodes must be in topological order'
            reader = node_label(graph.node, position)
            raise ModelFileError(f'{name}: node {reader} ({node.op_type}) reads {tensor!r}{reason}')
        available.update(writes(node))
    missing = [value.name for value in graph.output if value.name not in available]
    if missing:
        raise ModelFileError(f'{name}: no node gives the outputs {", ".join(missing)}')


def _cycle(graph: onnx.GraphProto, producers: dict[str, int]) -> list[str]:
    """Return the nodes of a cycle, or []."""
    predecessors = {
        position: [producers[tensor] for tensor in reads(node) if tensor in producers]
        for position, node in enumerate(graph.node)
    }
    try:
        graphlib.TopologicalSorter(predecessors).prepare()
    except graphlib.CycleError as error:
        return [node_label(graph.node, position) for position in error.args[1]]
    return []


def names_without_shape(values: Sequence[onnx.ValueInfoProto]) -> list[str]:
    """Return the names of the tensors that state no shape, not even one with open axes.

    Sequences and values without a type are not among them.
    """
    return [
        value.name
        for value in values
        if value.type.HasField('tensor_type') and not value.type.tensor_type.HasField('shape')
    ]


def check_valid(model: onnx.ModelProto | Path, name: AnyPath) -> None:
    """Raise ModelFileError, with onnx.checker's message, for a model that is not valid ONNX.

    So it does for a path with no file or no model behind it. `model` is the path of its file if it is too
    large for one message. A path is always checked, a model not if it is of the libspconv dialect.
    """
    if isinstance(model, onnx.ModelProto) and is_sparse(model):
        return
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        hint = ''
        if isinstance(model, onnx.ModelProto):
            names = names_without_shape((*model.graph.input, *model.graph.output))
            hint = f' (of {", ".join(names)}; graph.py set-shape states those of inputs)' if names else ''
        raise ModelFileError(f'{name}: would not be a valid model: {error}{hint}') from error
