"""Height and width of pictures by their headers, before anything is decoded."""

from __future__ import annotations

import struct

FARTHEST = 1 << 22
"""Bytes of a JPEG within which its size has to be: a profile and a preview may come before."""
JPEG_SIZES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""Markers of a JPEG that have its size."""
JPEG_ALONE = {0x01, *range(0xD0, 0xD9)}
"""Markers without a length."""
PNG, CHUNK_BYTES = b'\x89PNG\r\n\x1a\n', 12
"""First bytes of a PNG, and those of a chunk beside its data."""
TIFF_WIDTH, TIFF_HEIGHT = 256, 257


def size_in_header(content: bytes) -> tuple[int, int] | None:
    """Return (height, width) of a JPEG, PNG, BMP, WebP or TIFF; None where it is not found."""
    for signature, read in READERS.items():
        if content.startswith(signature):
            try:
                return read(content)
            except (struct.error, IndexError):  # cut short
                return None
    return None


def is_cut_png(content: bytes) -> bool:
    """Return whether a chunk of a PNG is longer than the file: OpenCV takes memory for all of it."""
    if not content.startswith(PNG):
        return False
    place = len(PNG)
    while place < len(content):
        length = int.from_bytes(content[place : place + 4], 'big')
        if place + CHUNK_BYTES + length > len(content):
            return True
        if content[place + 4 : place + 8] == b'IEND':
            return False
        place += CHUNK_BYTES + length
    return True


def _png(content: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from('>II', content, 16)
    return height, width


def _bmp(content: bytes) -> tuple[int, int]:
    (kind,) = struct.unpack_from('<I', content, 14)
    width, height = struct.unpack_from('<HH' if kind == 12 else '<ii', content, 18)
    return abs(height), abs(width)


def _webp(content: bytes) -> tuple[int, int] | None:
    kind = content[12:16]
    if kind == b'VP8 ':
        width, height = struct.unpack_from('<HH', content, 26)
        return height & 0x3FFF, width & 0x3FFF
    if kind == b'VP8L':
        (bits,) = struct.unpack_from('<I', content, 21)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b'VP8X':
        width, height = (int.from_bytes(content[place : place + 3], 'little') for place in (24, 27))
        return height + 1, width + 1
    return None


def _jpeg(content: bytes) -> tuple[int, int] | None:
    place = 2
    while 0 <= (place := content.find(b'\xff', place)) < FARTHEST:
        marker = content[place + 1]
        if marker in JPEG_SIZES:
            height, width = struct.unpack_from('>HH', content, place + 5)
            return height, width
        if marker in (0x00, 0xFF):  # of the data, or filling
            place += 1
        elif marker in JPEG_ALONE:
            place += 2
        else:
            place += 2 + struct.unpack_from('>H', content, place + 2)[0]
    return None


def _tiff(content: bytes) -> tuple[int, int] | None:
    order = '<' if content.startswith(b'II') else '>'
    (place,) = struct.unpack_from(f'{order}I', content, 4)
    (count,) = struct.unpack_from(f'{order}H', content, place)
    sizes = {}
    for number in range(count):
        tag, kind, _ = struct.unpack_from(f'{order}HHI', content, place + 2 + 12 * number)
        if tag in (TIFF_WIDTH, TIFF_HEIGHT):
            value = order + ('H' if kind == 3 else 'I')
            (sizes[tag],) = struct.unpack_from(value, content, place + 10 + 12 * number)
    return (sizes[TIFF_HEIGHT], sizes[TIFF_WIDTH]) if len(sizes) == 2 else None


READERS = {
    b'\xff\xd8': _jpeg,
    PNG: _png,
    b'BM': _bmp,
    b'RIFF': _webp,
    b'II*\x00': _tiff,
    b'MM\x00*': _tiff,
}
"""First bytes of a file -> what reads its size."""
