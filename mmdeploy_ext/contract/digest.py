"""SHA-256 of a file's graph in its metadata: opening finds a damaged file.

The digest covers nodes, weights and external data, not metadata. The length is stored, too: damage
keeps it, tools that rewrite a graph do not. This reads protobuf's wire format and needs no onnx.
"""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract.metadata import PREFIX
from mmdeploy_ext.util.errors import ModelFileError
from mmdeploy_ext.util.protobuf import METADATA, entry, fields, metadata_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.util.files import AnyPath

KEY = f'{PREFIX}digest'
GRAPH, FUNCTIONS = 7, 25
"""Fields of onnx.ModelProto."""
UNKNOWN, WHOLE, DAMAGED, REWRITTEN = 'unknown', 'whole', 'damaged', 'rewritten'
"""States of a file: no digest; unchanged; same length, other content; other length."""
DAMAGE = (
    'its nodes or weights changed after it was written (the SHA-256 differs, the length does not): copy '
    f'the file or export it again; if a tool changed values in it on purpose, remove {KEY} from its metadata'
)
REWRITE = 'another tool has rewritten the graph since mm2onnx did; its weights cannot be checked for damage'


def _digest(content: Any, folder: Path, data: Sequence[str]) -> dict[str, Any]:
    digest, length = hashlib.sha256(), 0
    for number, _, begin, end in fields(content):
        if number in (GRAPH, FUNCTIONS):
            digest.update(content[begin:end])
            length += end - begin
    for name in data:
        with open(folder / name, 'rb') as stream:
            digest.update(hashlib.file_digest(stream, 'sha256').digest())
        length += (folder / name).stat().st_size
    return dict(sha256=digest.hexdigest(), bytes=length, data=list(data))


def sealed(content: bytes, data: Path | None = None) -> bytes:
    """Return a model's bytes with the digest of its graph; files of other tools stay unchanged.

    `data`: file of external weights in the model's folder.
    """
    kept, is_ours, view = [], False, memoryview(content)  # a slice of it is no copy of the weights
    for number, start, begin, end in fields(content):
        key = entry(content[begin:end]).get(1, b'').decode() if number == METADATA else ''
        is_ours |= key.startswith(PREFIX) and key != KEY
        if key != KEY:
            kept.append(view[start:end])
    if not is_ours:
        return content
    folder, names = (data.parent, [data.name]) if data else (Path(), [])
    value = json.dumps(_digest(view, folder, names)).encode()
    digest = b''.join(_field(number, text) for number, text in ((1, KEY.encode()), (2, value)))
    return b''.join([*kept, _field(METADATA, digest)])


def _field(number: int, content: bytes) -> bytes:
    length, size = bytearray(), len(content)
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + content


def state(path: AnyPath) -> str:
    """Return the state of a file; UNKNOWN if it is not ONNX."""
    try:
        text = metadata_of(path).get(KEY)
        if text is None:
            return UNKNOWN
        stored = json.loads(text)
        with open(path, 'rb') as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = _digest(memoryview(content), Path(path).parent, stored['data'])
    except (OSError, ValueError, LookupError, TypeError, BufferError):
        return UNKNOWN
    if found['bytes'] != stored['bytes']:
        return REWRITTEN
    return WHOLE if found['sha256'] == stored['sha256'] else DAMAGED


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
