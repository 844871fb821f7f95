"""ONNX files, in and out: damaged ones are refused by name, written ones are whole and checked.

Needs onnx and numpy only.
"""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import (
    load_external_data_for_model,
    load_external_data_for_tensor,
    uses_external_data,
)

from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.core.files import atomic_path, check_outputs, check_writable
from mmdeploy_ext.graph.io.index import all_graphs, all_nodes, all_tensors, label, reads, writes
from mmdeploy_ext.graph.io.tensors import load_tensors, save_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    'check',
    'check_opsets',
    'check_order',
    'check_ordinary',
    'check_targets',
    'external_files',
    'is_sparse',
    'load',
    'load_tensors',
    'read',
    'read_shapes',
    'save',
    'save_external',
    'save_tensors',
    'serialised_size',
]

AGAIN = 'export it again, or download it again if it came from elsewhere'
PROTOBUF_LIMIT = 2**31 - 1
"""Bytes that one protobuf message can hold."""
ALIGNMENT = 4096
"""Bytes: tensors in a data file begin at multiples of it, so that they can be mapped into memory."""
SMALLEST_EXTERNAL = 1024
"""Bytes: smaller tensors (shapes, axes) stay in the model file, where shape inference sees them."""
_FIRST, _LAST = onnx.TensorProto.FLOAT, onnx.TensorProto.BFLOAT16
WHOLE_BYTES = frozenset(range(_FIRST, _LAST + 1)) - {
    *(onnx.TensorProto.STRING, onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)
}
"""Kinds of which every element is one number of whole bytes."""
DEFAULT_DOMAINS = ('', 'ai.onnx')
SPARSE_OPERATORS = ('SparseConvolution', 'ScatterDense')


def read(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read an ONNX file as it is, broken graphs too, without looking for external data.

    Raises:
        ModelFileError: missing, empty or corrupt.
    """
    try:
        model = onnx.load(os.fspath(path), load_external_data=False)
    except FileNotFoundError as error:
        raise ModelFileError(f'{path}: no such ONNX file') from error
    except IsADirectoryError as error:
        raise ModelFileError(f'{path}: is a folder, expected an ONNX file') from error
    except PermissionError as error:
        raise ModelFileError(f'{path}: may not be read; change its permissions') from error
    except (DecodeError, ValueError) as error:
        raise ModelFileError(
            f'{path}: is not a readable ONNX file ({type(error).__name__}); it was cut short, or is of '
            f'another kind: {AGAIN}'
        ) from error
    if not model.graph.node:
        raise ModelFileError(f'{path}: holds no graph: expected an ONNX file with nodes; {AGAIN}')
    return model


def read_shapes(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read an ONNX file as it is, and of its external data what is small: shapes and axes, not weights.

    Raises:
        ModelFileError: see `read`; external data that are not there are left out.
    """
    model = read(path)
    for tensor in all_tensors(model):
        if uses_external_data(tensor) and math.prod(tensor.dims) <= SMALLEST_EXTERNAL:
            with contextlib.suppress(ValueError, OSError, onnx.checker.ValidationError):
                load_external_data_for_tensor(tensor, os.fspath(Path(path).parent))
                tensor.data_location = onnx.TensorProto.DEFAULT
                tensor.ClearField('external_data')
    return model


def is_sparse(model: onnx.ModelProto) -> bool:
    """Return whether a model is in the libspconv dialect, which is no valid ONNX."""
    return any(node.op_type in SPARSE_OPERATORS for node in model.graph.node)


def check_ordinary(model: onnx.ModelProto) -> None:
    """Refuse a graph of the libspconv dialect where types or numbers are needed.

    Raises:
        ModelFileError: it is one.
    """
    if is_sparse(model):
        raise ModelFileError(
            'the model is a sparse graph of the libspconv dialect, which has no types and runs in no ONNX '
            'Runtime; its portable form (`export_scn.py --target portable`) can be cut and run'
        )


def load(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read an ONNX file with its external data and make sure that it can be worked on.

    Returns:
        The model, all weights in it.

    Raises:
        ModelFileError: missing, empty, corrupt; external data missing; a tensor with more or fewer bytes than
            its shape takes; an opset that the installed onnx does not know; nodes in a cycle or out of
            order; a tensor that nothing makes.
    """
    model = read(path)
    check_opsets(model, path)
    _load_external(model, Path(path))
    _check_bytes(model, path)
    check_order(model, path)
    return model


def check_opsets(model: onnx.ModelProto, name: str | os.PathLike[str] = 'the model') -> None:
    """Refuse a model of an opset that the installed onnx does not know.

    Raises:
        ModelFileError: it states none, or a newer one.
    """
    if not model.opset_import:
        raise ModelFileError(f'{name}: states no opset; it was cut short, or is no ONNX file: {AGAIN}')
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


def external_files(model: onnx.ModelProto, folder: Path) -> dict[str, Path]:
    """Return tensor name -> file of all tensors of a model that are stored outside of it."""
    found = {}
    for tensor in all_tensors(model):
        if uses_external_data(tensor):
            entries = {entry.key: entry.value for entry in tensor.external_data}
            found[tensor.name] = folder / entries.get('location', '')
    return found


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
        load_external_data_for_model(model, os.fspath(path.parent))
    except (ValueError, OSError, onnx.checker.ValidationError) as error:
        found = ', '.join(sorted({file.name for file in files.values()}))
        raise ModelFileError(
            f'{path}: its external data ({found}) cannot be read; was it cut short, or is it of another '
            f'model? ({error})'
        ) from error


def _check_bytes(model: onnx.ModelProto, name: str | os.PathLike[str]) -> None:
    """Refuse weights that were cut short, or that are another tensor's."""
    for tensor in all_tensors(model):
        if tensor.data_type not in WHOLE_BYTES:
            continue
        each = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        held, wanted = len(tensor.raw_data), math.prod(tensor.dims) * each
        if not tensor.HasField('raw_data'):
            held = len(getattr(tensor, onnx.helper.tensor_dtype_to_field(tensor.data_type))) * each
        if held != wanted:
            shape = 'x'.join(map(str, tensor.dims)) or 'scalar'
            raise ModelFileError(
                f'{name}: the weights of {tensor.name!r} are {held} bytes, and its shape {shape} '
                f'takes {wanted}; they were cut short, or are of another model: {AGAIN}'
            )


def check_order(model: onnx.ModelProto, name: str | os.PathLike[str] = 'the model') -> None:
    """Refuse a graph whose nodes are in a cycle, out of order, or read what nothing makes.

    Raises:
        ModelFileError: names the node and the tensor.
    """
    graph = model.graph
    made = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    made.update(entry.values.name for entry in graph.sparse_initializer)
    later = {out: at for at, node in enumerate(graph.node) for out in writes(node)}
    for position, node in enumerate(graph.node):
        for tensor in reads(node):
            if tensor in made:
                continue
            who = f'{name}: node {label(graph.node, position)} ({node.op_type}) reads {tensor!r}'
            if tensor not in later:
                raise ModelFileError(f'{who}, which no node, input or initializer gives')
            cycle = _cycle(graph, later, position)
            if cycle:
                raise ModelFileError(f'{who}, which depends on itself: {" -> ".join(cycle)} is a cycle')
            raise ModelFileError(
                f'{who} before node {label(graph.node, later[tensor])} has written it: nodes must be in '
                f'topological order'
            )
        made.update(writes(node))
    missing = [value.name for value in graph.output if value.name not in made]
    if missing:
        raise ModelFileError(f'{name}: no node gives the outputs {", ".join(missing)}')


def _cycle(graph: onnx.GraphProto, producers: Mapping[str, int], start: int) -> list[str]:
    """Return the nodes of a cycle that `start` is in, or []."""
    come_from: dict[int, int] = {}
    waiting = [start]
    while waiting:
        position = waiting.pop()
        for tensor in reads(graph.node[position]):
            above = producers.get(tensor)
            if above is None or above in come_from:
                continue
            come_from[above] = position
            if above == start:
                chain = [start]
                while len(chain) == 1 or chain[-1] != start:
                    chain.append(come_from[chain[-1]])
                return [label(graph.node, at) for at in chain]
            waiting.append(above)
    return []


def save(
    model: onnx.ModelProto,
    path: str | os.PathLike[str],
    *,
    inputs: Sequence[str | os.PathLike[str]] = (),
    limit: int = PROTOBUF_LIMIT,
) -> list[Path]:
    """Check a model and write it; what was there stays as it is until the new file is whole.

    A model that one protobuf message cannot hold gets its large tensors in `NAME.data` beside it. Graphs
    of the libspconv dialect are no valid ONNX and are written unchecked.

    Args:
        model: stays as it is.
        path: file to write.
        inputs: files that the model was made from; they are never written over.
        limit: bytes that the file may have before weights go beside it.

    Returns:
        The files that were written, the model first.

    Raises:
        UsageError: `path` is one of `inputs`, or cannot be written.
        ModelFileError: the model is not valid: the checker's message.
    """
    path = Path(path)
    external = serialised_size(model) > limit
    targets = [path, path.with_name(f'{path.name}.data')] if external else [path]
    check_targets(targets, inputs)
    check_order(model, path)
    model = with_output_shapes(model)
    if external:
        save_external(model, *targets)
        return targets
    check(model, path)
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return targets


def with_output_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model whose outputs have the shapes that are inferred where none is stated.

    ONNX Runtime runs files without them, and some exporters write such; onnx calls them not valid.
    """
    if is_sparse(model) or not (missing := _without_shape(model.graph.output)):
        return model
    from mmdeploy_ext.graph.io import types

    result, found = onnx.ModelProto(), types.infer(model)
    result.CopyFrom(model)
    for value in result.graph.output:
        if value.name in missing and types.shape(found.get(value.name)) is not None:
            value.type.CopyFrom(found[value.name])
    return result


def _without_shape(values: Sequence[onnx.ValueInfoProto]) -> list[str]:
    kinds = {value.name: value.type for value in values}
    return [
        name
        for name, kind in kinds.items()
        if kind.HasField('tensor_type') and not kind.tensor_type.HasField('shape')
    ]


def check(model: onnx.ModelProto | Path, name: str | os.PathLike[str]) -> None:
    """Let onnx.checker look at a model, or at a file when it is too large.

    Raises:
        ModelFileError: its message.
    """
    if isinstance(model, onnx.ModelProto) and is_sparse(model):
        return
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        bare = _without_shape((*model.graph.input, *model.graph.output)) if hasattr(model, 'graph') else []
        hint = f' (of {", ".join(bare)}; graph.py set-shape states those of inputs)' if bare else ''
        raise ModelFileError(f'{name}: would not be a valid model: {error}{hint}') from error


def check_targets(
    targets: Sequence[str | os.PathLike[str]], inputs: Sequence[str | os.PathLike[str]]
) -> None:
    """Refuse to write over an input or its external data, and where nothing can be written.

    Raises:
        UsageError: the message names the file.
    """
    check_outputs({'--output': targets}, {'the input': inputs})
    for target in targets:
        check_writable(target)


def serialised_size(model: onnx.ModelProto) -> int:
    """Return about how many bytes a model takes; counted in parts, because one message ends at 2 GiB."""
    tensors = sum(_tensor_bytes(tensor) for tensor in all_tensors(model))
    nodes = sum(len(node.input) + len(node.output) for node in all_nodes(model)) * 64
    return tensors + nodes + sum(value.ByteSize() for value in model.graph.value_info)


def _tensor_bytes(tensor: onnx.TensorProto) -> int:
    return len(tensor.raw_data) if tensor.HasField('raw_data') else tensor.ByteSize()


def save_external(model: onnx.ModelProto, path: Path, data: Path, *, checked: bool = True) -> None:
    """Write a model and its large tensors; the old model goes before the data that it may use does."""
    stripped = onnx.ModelProto()
    stripped.CopyFrom(model)
    with atomic_path(path) as temporary, atomic_path(data) as temporary_data:
        moved = _move_tensors(stripped, temporary_data)
        _set_location(moved, temporary_data.name)
        temporary.write_bytes(stripped.SerializeToString())
        if checked and not is_sparse(stripped):
            check(temporary, path)
        _set_location(moved, data.name)
        temporary.write_bytes(stripped.SerializeToString())
        if data.exists():
            path.unlink(missing_ok=True)


def _move_tensors(model: onnx.ModelProto, data: Path) -> list[onnx.TensorProto]:
    """Move large initializers into a data file and return them."""
    moved = []
    tensors = [tensor for graph in all_graphs(model) for tensor in getattr(graph, 'initializer', ())]
    with open(data, 'wb') as stream:
        for tensor in tensors:
            content = tensor.raw_data
            if not content and tensor.data_type != onnx.TensorProto.STRING:
                content = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)).raw_data
            if len(content) < SMALLEST_EXTERNAL:
                continue
            stream.write(b'\0' * (-stream.tell() % ALIGNMENT))
            shape, name, kind = list(tensor.dims), tensor.name, tensor.data_type
            tensor.Clear()
            tensor.name, tensor.data_type = name, kind
            tensor.dims.extend(shape)
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (('location', ''), ('offset', stream.tell()), ('length', len(content))):
                tensor.external_data.add(key=key, value=str(value))
            stream.write(content)
            moved.append(tensor)
    return moved


def _set_location(tensors: Sequence[onnx.TensorProto], location: str) -> None:
    for tensor in tensors:
        tensor.external_data[0].value = location
