"""Protobuf's wire format: fields of a message, and the metadata of an ONNX file, read without onnx."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mmdeploy_ext.base.files import AnyPath

METADATA = 14
"""Field of onnx.ModelProto."""
SIZES = {1: 8, 5: 4}
"""Wire type of a number -> bytes."""


def _varint(content: Any, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def fields(content: Any) -> Iterator[tuple[int, int, int, int]]:
    """Yield the number of each field of a message, where it starts, and where its content begins and ends.

    LookupError or ValueError: it is no message, or cut short.
    """
    place = 0
    while place < len(content):
        start, tag = place, content[place]
        begin = place = place + 1
        if tag > 127:
            tag, begin = _varint(content, start)
            place = begin
        if tag & 7 == 2:
            size, begin = _varint(content, place)
            place = begin + size
        elif tag & 7 == 0:
            _, place = _varint(content, place)
        else:
            place += SIZES[tag & 7]
        if tag < 8 or place > len(content):
            raise ValueError(f'field {tag >> 3} at byte {start} is none, or cut short')
        yield tag >> 3, start, begin, place


def entry(content: bytes) -> dict[int, bytes]:
    """Return key (1) and value (2) of an entry of metadata."""
    return {number: bytes(content[begin:end]) for number, _, begin, end in fields(content)}


def metadata_of(path: AnyPath) -> dict[str, str]:
    """Return `metadata_props` of an ONNX file; LookupError or ValueError: it is none."""
    with open(path, 'rb') as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = [entry(content[begin:end]) for number, _, begin, end in fields(content) if number == METADATA]
    return {one.get(1, b'').decode(): one.get(2, b'').decode() for one in found}
