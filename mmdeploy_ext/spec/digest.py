"""SHA-256 of a file's graph in its metadata: opening finds a damaged file.

The digest covers the nodes (operators, inputs, outputs, attributes) and the weights (names, types, shapes,
values), wherever and in whatever order a tool stores them, but not names of nodes, texts and inferred shapes.
The length of all this is stored, too: damage keeps it, tools that rewrite a graph do not. This reads
protobuf's wire format and needs no onnx.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.errors import DataError, Mm2OnnxError, ModelFileError
from mmdeploy_ext.base.files import locked, path_in, sha256_file
from mmdeploy_ext.base.plain_pickle import METADATA, entry, fields, metadata_of
from mmdeploy_ext.spec.metadata import PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.base.files import AnyPath

KEY = f'{PREFIX}digest'
VERSION = 2
"""Digests of mm2onnx 0.3.0 have no version and are of the bytes of the graph."""
UNKNOWN, WHOLE, DAMAGED, REWRITTEN = 'unknown', 'whole', 'damaged', 'rewritten'
"""States of a file: no digest; unchanged; same length, other content; other length."""
DAMAGE = (
    'its nodes or weights changed after it was written (the SHA-256 differs, the length does not): copy '
    f'the file or export it again; if a tool changed values in it on purpose, remove {KEY} from its metadata'
)
REWRITE = 'another tool has rewritten the graph since mm2onnx did; its weights cannot be checked for damage'

GRAPH, FUNCTIONS = 7, 25
"""Fields of onnx.ModelProto."""
MESSAGES = dict(
    graph={1: 'node', 5: 'tensor', 11: 'value', 12: 'value', 15: 'sparse'},
    function={7: 'node', 11: 'attribute'},
    node={5: 'attribute'},
    attribute={5: 'constant', 6: 'graph', 10: 'constant', 11: 'graph', 22: 'sparse', 23: 'sparse'},
    sparse={1: 'tensor', 2: 'constant'},
)
"""Message -> field -> message in it; the bytes of other fields are taken as they are."""
LEFT_OUT = dict(
    graph=(2, 10, 13, 14, 16),
    function=(8, 12, 14),
    node=(3, 6, 9),
    attribute=(13,),
    value=(3, 4),
    constant=(8,),
)
"""Message -> fields that do not count: texts, names that nothing refers to, inferred shapes, metadata."""
SORTED = {('graph', 1), ('graph', 5), ('node', 5), ('function', 7), ('function', 11)}
"""(message, field) with an order that means nothing: nodes, weights and attributes are known by names."""
NUMBERS = {('attribute', 7), ('attribute', 8), ('sparse', 3)}
"""(message, field) of repeated numbers, which some tools pack into one field."""
DIMS, DATA_TYPE, INT32_DATA, STRINGS, NAME, RAW_DATA, EXTERNAL_DATA, DATA_LOCATION = 1, 2, 5, 6, 8, 9, 13, 14
EXTERNAL = b'\1'
FLOATS = (4, 10)
VALUES = {*FLOATS, INT32_DATA, STRINGS, 7, 11, RAW_DATA}
"""Fields of onnx.TensorProto."""
CODES = {1: (4, 4), 4: (5, 2), 5: (5, 2), 6: (5, 4), 7: (7, 8), 10: (5, 2), 11: (10, 8), 12: (11, 4)}
CODES |= {13: (11, 8), 14: (4, 8), 15: (10, 16), 16: (5, 2)}
CODES = {bytes([data_type]): entry for data_type, entry in CODES.items()}
"""Data type of a tensor -> field with its values unless they are in `RAW_DATA`, and bytes of a value there;
`INT32_DATA` and 1 for the others."""


class _Reader:
    """Digests of messages.

    Attributes:
        length: bytes of everything that was read.
    """

    def __init__(self, folder: Path, name: object) -> None:
        self.folder, self.name, self.length = folder, name, 0
        self._files: dict[Path, Any] = {}

    def digest(self, kind: str, content: Any) -> bytes:
        found: dict[int, list[Any]] = {}
        inner, left_out = MESSAGES.get(kind, {}), LEFT_OUT.get(kind, ())
        for number, _, begin, end in fields(content):
            if number in inner:
                found.setdefault(number, []).append(self.digest(inner[number], content[begin:end]))
            elif number not in left_out:
                found.setdefault(number, []).append(content[begin:end])
        if kind in ('tensor', 'constant'):
            found = self._tensor(found)
        elif kind == 'node' and bytes(found.get(7, [b'other'])[0]) in (b'', b'ai.onnx'):
            del found[7]  # both are names of ONNX's own domain
        whole = hashlib.sha256()
        for number in sorted(found):
            parts = found[number]
            if (kind, number) in SORTED:
                parts.sort()
            elif (kind, number) in NUMBERS:
                parts = [b''.join(parts)]
            lengths = [len(part) for part in parts]
            whole.update(f'{number}{lengths}'.encode())
            whole.update(b''.join(parts))
            if number not in inner:
                self.length += sum(lengths)
        return whole.digest()

    def _tensor(self, found: dict[int, list[Any]]) -> dict[int, list[Any]]:
        values, count = hashlib.sha256(), 0
        for part in self._values(found):
            values.update(part)
            count += len(part)
        self.length += count
        kept = {number: found[number] for number in (DATA_TYPE, NAME) if number in found}
        return {**kept, DIMS: [b''.join(found.get(DIMS, ()))], RAW_DATA: [values.digest()]}

    def _values(self, found: Mapping[int, list[Any]]) -> list[Any]:
        if EXTERNAL_DATA in found:
            if bytes(found[DATA_LOCATION][-1]) != EXTERNAL:
                raise ValueError('a tensor has values at two places')
            return [self._external(dict(_text_entry(part) for part in found[EXTERNAL_DATA]))]
        if STRINGS in found:
            return [part for text in found[STRINGS] for part in (len(text).to_bytes(8, 'little'), text)]
        field, width = CODES.get(bytes(found[DATA_TYPE][-1]), (INT32_DATA, 1))
        if found.keys() & VALUES not in ({field}, {RAW_DATA}, set()):
            raise ValueError('a tensor has values of another type')
        if field in found and field not in FLOATS:
            return [_packed(_varints(b''.join(found[field])), width)]
        return found.get(field, found.get(RAW_DATA, []))

    def _external(self, entries: Mapping[str, str]) -> memoryview:
        path = path_in(self.folder, entries['location'], self.name, below=True)
        if path not in self._files:
            self._files[path] = _mapped(path)
        begin = int(entries.get('offset', 0))
        end = begin + int(entries['length']) if 'length' in entries else len(self._files[path])
        if not 0 <= begin <= end <= len(self._files[path]):
            raise ValueError(f'{path} is cut short')
        return self._files[path][begin:end]


def _mapped(path: AnyPath) -> memoryview:
    with open(path, 'rb') as stream:
        if not os.fstat(stream.fileno()).st_size:
            return memoryview(b'')
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


def _text_entry(content: Any) -> tuple[str, str]:
    found = entry(content)
    return found.get(1, b'').decode(), found.get(2, b'').decode()


def _varints(content: bytes) -> np.ndarray:
    """Values of packed varints, (n,) uint64, little endian."""
    codes = np.frombuffer(content, np.uint8)
    ends = np.flatnonzero(codes < 128) + 1
    if not len(codes) or not len(ends) or ends[-1] != len(codes):
        raise ValueError('a number is cut short')
    lengths = np.diff(ends, prepend=0)
    places = np.arange(len(codes)) - np.repeat(ends - lengths, lengths)
    digits = (codes & 127).astype(np.uint64) << (7 * places).astype(np.uint64)
    return np.add.reduceat(digits, ends - lengths).astype('<u8')


def _packed(codes: np.ndarray, width: int) -> bytes:
    spare = np.uint64(64 - 8 * width)
    if not np.all((codes << spare >> spare == codes) | (codes.view('<i8') >> np.int64(8 * width - 1) == -1)):
        raise ValueError('a number is too large for its type')
    return codes.view('u1').reshape(-1, 8)[:, :width].tobytes()


def _digest(content: Any, folder: Path, name: object) -> dict[str, Any]:
    reader, graphs, functions, size = _Reader(folder, name), [], [], 0
    for number, _, begin, end in fields(content):
        if number == GRAPH:
            graphs.append(reader.digest('graph', content[begin:end]))
        elif number == FUNCTIONS:
            functions.append(reader.digest('function', content[begin:end]))
        size += end - begin if number in (GRAPH, FUNCTIONS) else 0
    whole = hashlib.sha256(b''.join([*graphs, *sorted(functions)]))
    return dict(version=VERSION, sha256=whole.hexdigest(), length=reader.length, bytes=size)


def _digest_of_bytes(content: Any, folder: Path, name: object, data: Any) -> dict[str, Any]:
    digest, length = hashlib.sha256(), 0
    for number, _, begin, end in fields(content):
        if number in (GRAPH, FUNCTIONS):
            digest.update(content[begin:end])
            length += end - begin
    for file in data:
        path = path_in(folder, file, f'{name}: {KEY}', below=True)
        digest.update(bytes.fromhex(sha256_file(path)))
        length += path.stat().st_size
    return dict(sha256=digest.hexdigest(), bytes=length)


def sealed(content: bytes, folder: AnyPath = '') -> bytes:
    """Return a model's bytes with the digest of its graph; files of other tools stay unchanged.

    `folder`: the folder with its external weights.
    """
    kept, is_ours, view = [], False, memoryview(content)  # a slice of it is no copy of the weights
    for number, start, begin, end in fields(content):
        key = entry(content[begin:end]).get(1, b'').decode() if number == METADATA else ''
        is_ours |= key.startswith(PREFIX) and key != KEY
        if key != KEY:
            kept.append(view[start:end])
    if not is_ours:
        return content
    value = json.dumps(_digest(view, Path(folder), 'the model')).encode()
    digest = b''.join(_field(number, text) for number, text in ((1, KEY.encode()), (2, value)))
    return b''.join([*kept, _field(METADATA, digest)])


def _field(number: int, content: bytes) -> bytes:
    length, size = bytearray(), len(content)
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + content


def state(path: AnyPath) -> str:
    """Return the state of a file; UNKNOWN if it is not ONNX.

    ModelFileError: its weights are not in regular files of its folder.
    """
    found = _state(path)
    if found == DAMAGED:
        with contextlib.suppress(OSError, Mm2OnnxError), locked(Path(path).parent):
            found = _state(path)  # a command was replacing its weights
    return found


def _state(path: AnyPath) -> str:
    try:
        stored = json.loads(metadata_of(path)[KEY])
        is_of_bytes, length = 'version' not in stored, stored['bytes']
        content = _mapped(path)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return UNKNOWN
    if not is_of_bytes and stored['version'] != VERSION:
        return UNKNOWN
    try:
        if is_of_bytes:
            found = _digest_of_bytes(content, Path(path).parent, path, stored['data'])
        else:
            found = _digest(content, Path(path).parent, path)
    except DataError as error:
        raise ModelFileError(f'{error}; export it again') from error
    except OSError:  # opening it reports it
        return UNKNOWN
    except (ValueError, LookupError, TypeError, RecursionError):
        return UNKNOWN if is_of_bytes else DAMAGED
    if found['sha256'] == stored.get('sha256'):
        return WHOLE
    is_same_size = found['bytes'] == length or found.get('length', 0) == stored.get('length')
    return DAMAGED if is_same_size else REWRITTEN


@functools.lru_cache(maxsize=64)
def _state_of(path: str, size: int, time_ns: int, inode: int) -> str:
    return state(path)


def check_whole(path: AnyPath) -> str:
    """Raise ModelFileError for a damaged file; return a note if another tool rewrote it, or ''.

    A process reads an unchanged file once.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # opening it reports it
        return ''
    found = _state_of(os.fspath(path), status.st_size, status.st_mtime_ns, status.st_ino)
    if found == DAMAGED:
        raise ModelFileError(f'{path}: is damaged: {DAMAGE}')
    return f'{path}: {REWRITE}' if found == REWRITTEN else ''
