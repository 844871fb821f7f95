"""Height and width of pictures from their headers, before anything is decoded."""

from __future__ import annotations

import struct

JPEG_HEADER_BYTES = 1 << 22
"""Bytes of a JPEG within which its size has to be: a profile and a preview may come before."""
JPEG_SIZES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
"""Markers of a JPEG that have its size."""
JPEG_ALONE = {0x01, *range(0xD0, 0xD9)}
"""Markers without a length."""
PNG, CHUNK_BYTES = b'\x89PNG\r\n\x1a\n', 12
"""First bytes of a PNG, and those of a chunk beside its data."""
TIFF_WIDTH, TIFF_HEIGHT = 256, 257
"""Tags of the fields of a TIFF that have its size."""


def size_in_header(content: bytes) -> tuple[int, int] | None:
    """Return (height, width) of a JPEG, PNG, BMP, WebP or TIFF; None if no size is read, as of other files.

    They are those of the stored pixels, which EXIF may turn. Nothing behind the size is checked.
    """
    for signature, read in READERS.items():
        if content.startswith(signature):
            try:
                return read(content)
            except (struct.error, IndexError):  # truncated
                return None
    return None


def is_cut_png(content: bytes) -> bool:
    """Return whether a PNG lacks its last chunk, IEND, or a part of a chunk; False for other files.

    OpenCV allocates memory for all of a chunk, however long it says that it is.
    """
    if not content.startswith(PNG):
        return False
    offset = len(PNG)
    while offset < len(content):
        length = int.from_bytes(content[offset : offset + 4], 'big')
        if offset + CHUNK_BYTES + length > len(content):
            return True
        if content[offset + 4 : offset + 8] == b'IEND':
            return False
        offset += CHUNK_BYTES + length
    return True


def _png(content: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from('>II', content, 16)
    return height, width


def _bmp(content: bytes) -> tuple[int, int]:
    (header_bytes,) = struct.unpack_from('<I', content, 14)
    width, height = struct.unpack_from('<HH' if header_bytes == 12 else '<ii', content, 18)
    return abs(height), abs(width)


def _webp(content: bytes) -> tuple[int, int] | None:
    chunk_type = content[12:16]
    if chunk_type == b'VP8 ':
        width, height = struct.unpack_from('<HH', content, 26)
        return height & 0x3FFF, width & 0x3FFF
    if chunk_type == b'VP8L':
        (bits,) = struct.unpack_from('<I', content, 21)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if chunk_type == b'VP8X':
        width, height = (int.from_bytes(content[offset : offset + 3], 'little') for offset in (24, 27))
        return height + 1, width + 1
    return None


def _jpeg(content: bytes) -> tuple[int, int] | None:
    offset = 2
    while 0 <= (offset := content.find(b'\xff', offset)) < JPEG_HEADER_BYTES:
        marker = content[offset + 1]
        if marker in JPEG_SIZES:
            height, width = struct.unpack_from('>HH', content, offset + 5)
            return height, width
        if marker in (0x00, 0xFF):  # data, or padding
            offset += 1
        elif marker in JPEG_ALONE:
            offset += 2
        else:
            offset += 2 + struct.unpack_from('>H', content, offset + 2)[0]
    return None


def _tiff(content: bytes) -> tuple[int, int] | None:
    order = '<' if content.startswith(b'II') else '>'
    (offset,) = struct.unpack_from(f'{order}I', content, 4)
    (count,) = struct.unpack_from(f'{order}H', content, offset)
    sizes = {}
    for number in range(count):
        tag, field_type, _ = struct.unpack_from(f'{order}HHI', content, offset + 2 + 12 * number)
        if tag in (TIFF_WIDTH, TIFF_HEIGHT):
            value_format = order + ('H' if field_type == 3 else 'I')
            (sizes[tag],) = struct.unpack_from(value_format, content, offset + 10 + 12 * number)
    return (sizes[TIFF_HEIGHT], sizes[TIFF_WIDTH]) if len(sizes) == 2 else None


READERS = {
    b'\xff\xd8': _jpeg,
    PNG: _png,
    b'BM': _bmp,
    b'RIFF': _webp,
    b'II*\x00': _tiff,
    b'MM\x00*': _tiff,
}
"""First bytes of a file -> the function that reads its size."""
