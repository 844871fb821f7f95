"""Resize, pad and normalise rules: OpenMMLab's test pipeline in numpy and OpenCV.

OpenCV is imported where a picture is processed, so that what only reads a rule needs numpy alone.

Glossary: H, W height and width of the network input in pixels; h, w of an image; K proposals.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import struct
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmdeploy_ext.core.errors import ImageError, ShapeError
from mmdeploy_ext.core.files import IMAGE_SUFFIXES, will_read
from mmdeploy_ext.core.typed_json import JsonDataclass, Mismatch
from mmdeploy_ext.preprocess.cam2img import square_matrix
from mmdeploy_ext.preprocess.pillow_resize import resize_pillow

MOST_PIXELS = 100_000_000
"""Pixels of the largest picture that is decoded: it and its copies take about 10 bytes per pixel."""
MOST_BYTES = 8 * MOST_PIXELS
"""Size of the largest picture file: that many pixels of four 16-bit channels, not compressed."""
DAMAGE = re.compile('Corrupt JPEG data|Premature end of JPEG|Inconsistent progression|Invalid SOS parameters')
"""Warnings of libjpeg after which it goes on with pixels that are not those of the picture."""
_DECODER_LOCK = threading.Lock()  # all threads share the file descriptor


@dataclasses.dataclass(frozen=True)
class PreparedImage:
    """One image made into a network input.

    Attributes:
        tensor: (3, H, W) float32, normalised and padded; RGB if the rule has `to_rgb`, otherwise BGR.
        img_shape: (h, w) of the content before padding, pixels.
        scale_factor: (4,) float32 `w h w h` ratios, network input / original.
        ori_shape: (h, w) of the original image, pixels.
        border: (rows of padding above the content, columns of padding left of it).
        proposals: (K, 4) float32 xyxy, pixels of the network input, for detectors that take proposals; None
            if the picture came without some.
        cam2img: (4, 4) float64, camera of the network input, see `preprocess/cam2img.py`, for detectors of
            boxes in 3D; None if the picture came without one.
        warp: (3, 3) float64 matrix from pixels of the original to those of the input, of pictures that are
            warped about their middle; None for those that are resized and padded.
        collected: what else a config's test pipeline collects of a picture, such as `filename`, for PyTorch.
    """

    tensor: np.ndarray
    img_shape: tuple[int, int]
    scale_factor: np.ndarray
    ori_shape: tuple[int, int]
    border: tuple[int, int] = (0, 0)
    proposals: np.ndarray | None = None
    cam2img: np.ndarray | None = None
    warp: np.ndarray | None = None
    collected: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @property
    def to_input(self) -> np.ndarray:
        """The matrix (3, 3) float64 from pixels of the original picture to those of the network input."""
        if self.warp is not None:
            return self.warp
        (top, left), (ratio_w, ratio_h) = self.border, self.scale_factor[:2].astype(np.float64)
        return np.array([[ratio_w, 0, left], [0, ratio_h, top], [0, 0, 1]])

    def with_camera(self, cam2img: np.ndarray) -> PreparedImage:
        """Return this with the camera of the network input, given that of the original picture, (4, 4)."""
        return dataclasses.replace(self, cam2img=square_matrix(self.to_input) @ cam2img)


def check_colours(std: tuple[float, ...], size_divisor: int) -> None:
    """Raise Mismatch if pixels or sizes would be divided by 0."""
    if min(std) <= 0:
        raise Mismatch(f'std is {list(std)}, expected positive numbers')
    if size_divisor < 1:
        raise Mismatch(f'size_divisor is {size_divisor}, expected a number of at least 1')


@dataclasses.dataclass(frozen=True)
class PreprocessRule(JsonDataclass):
    """How an image becomes the network input.

    Attributes:
        mean, std: a pixel of 0 to 255 becomes (pixel - mean) / std; per channel, in the order after `to_rgb`.
        to_rgb: whether OpenCV's BGR is swapped to RGB before it is normalised.
        img_scale: (long edge, short edge) in pixels, in either order, that the resized image fits in, as
            mmdet's `Resize` has it; without `keep_ratio`, and warped, the image becomes (w, h) of it. None:
            no resize.
        keep_ratio: whether the aspect ratio stays.
        size_divisor: H and W are padded to multiples of it, below and right of the content, or all around if
            `centred`.
        pad_or, pad_more: unless `pad_or` is 0, each side is padded to (side | pad_or) + pad_more instead,
            with a bitwise or.
        centred: whether the middle of the content is the middle of the input, both rounded down.
        pad_size: (H, W) that is padded to instead; sides that are larger after the resize stay. None: the
            attributes above decide.
        size: (H, W) that a graph with a fixed shape takes: the image is resized to fit inside, or, without
            `keep_ratio`, to it, and padded to it, whatever scale and padding the attributes above state; None
            for graphs of any size.
        pad_val: value of the padding per channel, applied after normalisation as mmdet does.
        resize: library of the bilinear interpolation, 'cv2' or 'pillow'; 'warp': OpenCV's affine warp, which
            scales by the widths, keeps the middle in the middle, and cuts off or leaves black what is above
            and below.
        to_float32: whether the resize is in float32, without rounding to 8 bits.
    """

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    to_rgb: bool = True
    img_scale: tuple[int, int] | None = None
    keep_ratio: bool = True
    size_divisor: int = 1
    size: tuple[int, int] | None = None
    pad_val: tuple[float, float, float] = (0.0, 0.0, 0.0)
    pad_size: tuple[int, int] | None = None
    resize: Literal['cv2', 'pillow', 'warp'] = 'cv2'
    pad_or: int = 0
    pad_more: int = 0
    centred: bool = False
    to_float32: bool = False

    def check(self) -> None:
        check_colours(self.std, self.size_divisor)

    def resized_shape(self, height: int, width: int) -> tuple[int, int]:
        """Return (h, w) after the resize of an image of `height` x `width`."""
        if self.resize == WARP:
            return self.size or (self.img_scale[1], self.img_scale[0])
        if self.size is not None:
            if not self.keep_ratio:
                return self.size
            factor = min(self.size[0] / height, self.size[1] / width)
        elif self.img_scale is None:
            return height, width
        elif not self.keep_ratio:
            return self.img_scale[1], self.img_scale[0]
        else:
            factor = min(max(self.img_scale) / max(height, width), min(self.img_scale) / min(height, width))
        return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)

    def padded_shape(self, height: int, width: int) -> tuple[int, int]:
        """Return (H, W) after padding a resized image of `height` x `width`."""
        if self.size is not None:
            return self.size
        if self.pad_size is not None:
            return max(self.pad_size[0], height), max(self.pad_size[1], width)
        if self.pad_or:
            return (height | self.pad_or) + self.pad_more, (width | self.pad_or) + self.pad_more
        return next_multiples((height, width), self.size_divisor)

    def apply(self, image_bgr: np.ndarray) -> PreparedImage:
        """Return the network input of an image (h, w, 3) uint8 BGR, as OpenCV reads it; else ShapeError."""
        shape, dtype = np.shape(image_bgr), getattr(image_bgr, 'dtype', type(image_bgr).__name__)
        if dtype != np.uint8 or shape[2:] != (3,) or 0 in shape:
            raise ShapeError(
                f'picture: got {dtype} {shape}, expected uint8 (h, w, 3): blue, green and red from 0 to 255'
            )
        height, width = shape[:2]
        if self.to_float32:
            image_bgr = image_bgr.astype(np.float32)
        resized_h, resized_w = self.resized_shape(height, width)
        warp = warp_about_middle((height, width), (resized_h, resized_w)) if self.resize == WARP else None
        if warp is not None:
            image_bgr = warped(image_bgr, warp, resized_h, resized_w)
        elif (resized_h, resized_w) != (height, width):
            image_bgr = RESIZERS[self.resize](image_bgr, resized_h, resized_w)
        padded_h, padded_w = self.padded_shape(resized_h, resized_w)
        padded = np.broadcast_to(np.float32(self.pad_val), (padded_h, padded_w, 3)).copy()
        content = normalise(image_bgr, self.mean, self.std, self.to_rgb)
        top, left = 0, 0
        if self.centred:  # an input of odd size that the content fills lacks its last row or column, in mmdet
            top, left = padded_h // 2 - resized_h // 2, padded_w // 2 - resized_w // 2
            content = content[: padded_h // 2 + resized_h // 2, : padded_w // 2 + resized_w // 2]
        padded[top : top + content.shape[0], left : left + content.shape[1]] = content
        ratio_w, ratio_h = resized_w / width, resized_h / height
        if warp is not None:
            ratio_h = ratio_w
        return PreparedImage(
            tensor=np.ascontiguousarray(padded.transpose(2, 0, 1)),
            img_shape=(resized_h, resized_w),
            scale_factor=np.array([ratio_w, ratio_h, ratio_w, ratio_h], np.float32),
            ori_shape=(height, width),
            border=(top, left),
            warp=warp,
        )


def next_multiples(size: tuple[int, int], divisor: int) -> tuple[int, int]:
    """Return both sides of `size`, in its order, each increased to a multiple of `divisor`."""
    return -(-size[0] // divisor) * divisor, -(-size[1] // divisor) * divisor


def resize_cv2(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return an image (h, w, 3), uint8 or float32, resized to `height` x `width` by OpenCV, bilinearly."""
    import cv2

    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


WARP = 'warp'
"""Value of `PreprocessRule.resize` of mmdet3d's `AffineResize`."""


def warp_about_middle(size: tuple[int, int], new_size: tuple[int, int]) -> np.ndarray:
    """Return the matrix (3, 3) of mmdet3d's `AffineResize` without augmentation.

    It takes pixels of a picture of `size` (h, w) to those of `new_size` (h, w), by the ratio of the widths.
    """
    import cv2

    half_width, new_half_width = size[1] * 0.5, new_size[1] * 0.5
    middle, new_middle = (half_width, size[0] * 0.5), (new_half_width, new_size[0] * 0.5)
    triangles = [
        np.float32([(x, y), (x, y - reach), (x - reach, y - reach)])
        for (x, y), reach in ((middle, half_width), (new_middle, new_half_width))
    ]
    matrix = np.concatenate([cv2.getAffineTransform(*triangles), [[0.0, 0.0, 1.0]]])
    return matrix.astype(np.float32).astype(np.float64)


def warped(image: np.ndarray, matrix: np.ndarray, height: int, width: int) -> np.ndarray:
    """Warp an image (h, w, 3) uint8 or float32 to `height` x `width`; what lies outside of it is black.

    `matrix` (3, 3) takes pixels of the image to those of the result, as `warp_about_middle` returns it.
    """
    import cv2

    return cv2.warpAffine(image, matrix[:2].astype(np.float32), (width, height))


RESIZERS = {'cv2': resize_cv2, 'pillow': resize_pillow}
"""mmdet's `Resize.backend` -> function."""


def normalise(image_bgr: np.ndarray, mean: Sequence[float], std: Sequence[float], to_rgb: bool) -> np.ndarray:
    """Return (h, w, 3) float32 `(image - mean) / std`, rounded as mmdet rounds: float32, then OpenCV.

    `image_bgr` is (h, w, 3) uint8 or float32, of 0 to 255. `to_rgb` swaps its channels first; `mean` and
    `std` are in the order after that.
    """
    import cv2

    image = image_bgr.astype(np.float32)
    if to_rgb:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    image = cv2.subtract(image, np.asarray(mean, np.float32).astype(np.float64).reshape(1, -1))
    return cv2.multiply(image, 1 / np.asarray(std, np.float32).astype(np.float64).reshape(1, -1))


@contextlib.contextmanager
def _decoder_messages() -> Iterator[list[str]]:
    """Yield a list that receives, after the body, the lines that C libraries wrote to file descriptor 2.

    OpenCV has no other way to read the warnings of libjpeg. The descriptor may be closed.
    """
    lines: list[str] = []
    with _DECODER_LOCK, tempfile.TemporaryFile() as messages:
        try:
            stderr = os.dup(2)
        except OSError:  # closed: lines that are written there are dropped from now on
            null = os.open(os.devnull, os.O_WRONLY)
            stderr = os.dup(null)
            if null != 2:
                os.close(null)
        os.dup2(messages.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            messages.seek(0)
            lines += messages.read().decode('latin1').splitlines()


def read_image(path: str | Path) -> np.ndarray:
    """Read an image as (h, w, 3) uint8 BGR, turned as its EXIF says; 16 bits go to 8, gray and alpha to BGR.

    Raises:
        ImageError: no such file, no permission, zero bytes, not an image, damaged in a way that the decoder
            notices, or of more than `MOST_BYTES`, or, if `size_in_header` reads its size, `MOST_PIXELS`.
    """
    import cv2

    path = Path(path)
    try:
        if not path.is_file():
            is_other = path.exists() and not path.is_dir()
            raise ImageError(f'{path}: is a pipe or a device' if is_other else f'{path}: no such image file')
        if (size_bytes := path.stat().st_size) > MOST_BYTES:
            raise ImageError(
                f'{path}: has {size_bytes} bytes, expected at most {MOST_BYTES}; if it is a picture, make it '
                f'smaller'
            )
        content = path.read_bytes()
    except OSError as error:
        raise ImageError(f'{path}: cannot be read ({error.strerror or error})') from error
    if not content:
        raise ImageError(f'{path}: is empty (0 bytes), expected an image')
    size = size_in_header(content)
    if size is not None and size[0] * size[1] > MOST_PIXELS:
        raise ImageError(
            f'{path}: has {size[1]} x {size[0]} pixels, expected at most {MOST_PIXELS // 10**6} million; cut '
            f'it into tiles, or make it smaller'
        )
    if is_cut_png(content):
        raise ImageError(f'{path}: is not an image that OpenCV can decode: it was cut short, or damaged')
    with _decoder_messages() as messages:
        try:
            image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error as error:
            raise ImageError(f'{path}: cannot be decoded by OpenCV ({error.err or error})') from error
    if image is None:
        raise ImageError(f'{path}: is not an image that OpenCV can decode')
    if damage := [line for line in messages if DAMAGE.search(line)]:
        raise ImageError(
            f'{path}: is damaged ({damage[0].strip()}); copy it again, or, if it looks right in a viewer, '
            f'save it again from there'
        )
    return image


def list_images(paths: Iterable[str | Path]) -> list[Path]:
    """Return image files in the order of `paths`, for a folder the images in and below it, sorted.

    Pipes, devices and dangling links in a folder are returned too, by suffix: `read_image` refuses them, one
    by one. Linked folders in a folder are passed over, unlike linked files. ImageError: a path is no file or
    folder, or a folder has no image; files are returned whatever their suffix is.
    """
    images: list[Path] = []
    for path in map(Path, paths):
        if os.path.isdir(path):  # unlike `Path.is_dir` it is False of a name that no file can have
            inside = sorted(
                file
                for file in path.rglob('*')
                if file.suffix.lower() in IMAGE_SUFFIXES and not file.is_dir()
            )
            if not inside:
                raise ImageError(f'{path}: no image in this folder ({", ".join(IMAGE_SUFFIXES)})')
            images.extend(inside)
        elif os.path.isfile(path):
            images.append(path)
        else:
            raise ImageError(f'{path}: no such image or folder')
    will_read('a picture', [file for file in images if file.is_file()])
    return images


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
