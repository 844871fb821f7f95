"""Resize, pad and normalise: OpenMMLab's test pipeline in numpy and OpenCV.

H, W network input in pixels; h, w an image; K proposals.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdeploy_ext.base.arrays import load_arrays
from mmdeploy_ext.base.errors import DataError, ImageError, ShapeError
from mmdeploy_ext.base.files import IMAGE_SUFFIXES
from mmdeploy_ext.runtime.preprocess.cam2img import square_matrix
from mmdeploy_ext.spec.preparation import WARP, PreprocessRule

# Pillow's bilinear and bicubic resize in numpy, bit for bit.
#
# Source: Pillow 13, `src/libImaging/Resample.c`, 8 bits per channel. Pillow before 13 always begins with
# columns, one grey level apart where 13 begins with rows.


PRECISION_BITS = 32 - 8 - 2
"""Fractional bits of integer weights."""


def _bicubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel, a = -0.5."""
    x, a = np.abs(x), -0.5
    inner = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))


FILTERS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {
    'bilinear': (lambda x: np.maximum(1 - np.abs(x), 0), 1.0),
    'bicubic': (_bicubic, 2.0),
}
"""Name -> kernel and radius in pixels of the smaller of source and output."""


def resize_pillow(
    image: np.ndarray,
    height: int,
    width: int,
    resample: str = 'bilinear',
    rows: tuple[int, int] | None = None,
) -> np.ndarray:
    """Resize (h, w, C) uint8 along one axis, round to uint8, then along the other.

    `resample` is a key of `FILTERS`; `rows` limits the result to a half-open range.
    """
    removed_rows, removed_columns = image.shape[0] - height, image.shape[1] - width
    first, last = rows or (0, height)
    if removed_rows > max(2 * removed_columns, 0):
        image = _resample_rows(image, height, resample)[first:last]
        return _resample_columns(image, width, resample)
    if height == image.shape[0]:
        return _resample_columns(image[first:last], width, resample)
    starts, weights = _coefficients(image.shape[0], height, resample)
    starts, weights = starts[first:last], weights[first:last]
    top = int(starts.min())
    bottom = min(int(starts.max()) + weights.shape[1], image.shape[0])
    image = _resample_columns(image[top:bottom], width, resample)
    return _weighted_rows(image, starts - top, weights)


def _resample_columns(image: np.ndarray, size: int, resample: str) -> np.ndarray:
    resized = _resample_rows(np.ascontiguousarray(image.swapaxes(0, 1)), size, resample)
    return np.ascontiguousarray(resized.swapaxes(0, 1))


def _resample_rows(image: np.ndarray, size: int, resample: str) -> np.ndarray:
    if size == image.shape[0]:
        return image
    return _weighted_rows(image, *_coefficients(image.shape[0], size, resample))


def _weighted_rows(image: np.ndarray, first: np.ndarray, weights: np.ndarray) -> np.ndarray:
    total = np.full((len(first), *image.shape[1:]), 1 << (PRECISION_BITS - 1), np.int32)
    for tap in range(weights.shape[1]):
        rows = np.minimum(first + tap, image.shape[0] - 1)
        total += image[rows].astype(np.int32) * weights[:, tap, None, None]
    return np.clip(total >> PRECISION_BITS, 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=32)
def _coefficients(source: int, size: int, resample: str) -> tuple[np.ndarray, np.ndarray]:
    """First source index (size,) and fixed-point weights (size, taps) of each output index."""
    kernel, reach = FILTERS[resample]
    scale = source / size
    stretch = max(scale, 1.0)
    support = reach * stretch
    first = np.zeros(size, np.int64)
    weights = np.zeros((size, math.ceil(support) * 2 + 1), np.int32)
    for index in range(size):
        centre = (index + 0.5) * scale
        start = max(int(centre - support + 0.5), 0)
        stop = min(int(centre + support + 0.5), source)
        taps = kernel((np.arange(start, stop) - centre + 0.5) * (1 / stretch))
        total = sum(taps.tolist())
        if total:
            taps = taps / total
        first[index] = start
        fixed = np.copysign(0.5, taps) + taps * (1 << PRECISION_BITS)
        weights[index, : len(taps)] = fixed.astype(np.int32)
    first.flags.writeable = weights.flags.writeable = False  # callers share them
    return first, weights


DAMAGE = re.compile('Corrupt JPEG data|Premature end of JPEG|Inconsistent progression|Invalid SOS parameters')
"""Warnings of libjpeg after which it decodes wrong pixels."""
OF_DECODER = re.compile(
    rb'Corrupt JPEG|JPEG data|JPEG file|Inconsistent progression|Invalid SOS|^libpng|^\[ ?(WARN|ERROR|INFO)'
    rb'|TIFF|imread_|EXIF'
)
"""Lines that OpenCV and its decoders print."""
_DECODER_LOCK = threading.Lock()  # all threads share the file descriptor


@dataclasses.dataclass(frozen=True)
class PreparedImage:
    """One image as network input.

    Attributes:
        tensor: (bands, H, W) float32, normalised and padded; three bands are RGB with `to_rgb`, else BGR.
        img_shape: (h, w) before padding.
        scale_factor: (4,) float32 `w h w h`, network input / original.
        ori_shape: (h, w) of the original.
        border: (rows above, columns left) of padding.
        proposals: (K, 4) float32 xyxy in pixels of the network input, or None.
        cam2img: (4, 4) float64 camera of the network input, or None.
        warp: (3, 3) float64, pixels of the original to pixels of the input, for warped pictures.
        collected: further meta of the test pipeline, for PyTorch.
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
        """(3, 3) float64, pixels of the original to pixels of the network input."""
        if self.warp is not None:
            return self.warp
        (top, left), (ratio_w, ratio_h) = self.border, self.scale_factor[:2].astype(np.float64)
        return np.array([[ratio_w, 0, left], [0, ratio_h, top], [0, 0, 1]])

    def with_camera(self, cam2img: np.ndarray) -> PreparedImage:
        """Add the camera (4, 4) of the original picture."""
        return dataclasses.replace(self, cam2img=square_matrix(self.to_input) @ cam2img)


def prepare_image(rule: PreprocessRule, image_bgr: np.ndarray) -> PreparedImage:
    """Network input of an image as `read_image` gives it.

    `image_bgr`: (h, w, 3) uint8 BGR; with color_type 'unchanged' (h, w, bands) of a dtype of
    `BAND_DTYPES`. ShapeError: another array.
    """
    shape, dtype = np.shape(image_bgr), getattr(image_bgr, 'dtype', type(image_bgr).__name__)
    dtypes, expected = ('uint8',), 'uint8 (h, w, 3): blue, green and red from 0 to 255'
    if rule.color_type == 'unchanged':
        dtypes = BAND_DTYPES
        expected = f'(h, w, {rule.bands}) of {" or ".join(dtypes)}'
        expected += f': preprocess.mean of the file has {rule.bands} values'
    if str(dtype) not in dtypes or shape[2:] != (rule.picture_bands,) or 0 in shape:
        raise ShapeError(f'image: got {dtype} {shape}, expected {expected}')
    height, width = shape[:2]
    image_bgr, warp = resize_image(rule, image_bgr)
    resized_h, resized_w = image_bgr.shape[:2]
    padded_h, padded_w = rule.padded_shape(resized_h, resized_w)
    padded = np.broadcast_to(np.float32(rule.pad_val), (padded_h, padded_w, rule.bands)).copy()
    content = normalise(image_bgr, rule.mean, rule.std, rule.to_rgb)
    content = content.reshape(*content.shape[:2], rule.bands)
    top, left = 0, 0
    if rule.centred:  # an input of odd size that the content fills lacks its last row or column, in mmdet
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


def resize_image(rule: PreprocessRule, image_bgr: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """The image before normalising and padding, and the matrix of a warp."""
    height, width = image_bgr.shape[:2]
    if rule.color_type == 'grayscale':
        image_bgr = grey_of(image_bgr)
    if rule.to_float32:
        image_bgr = image_bgr.astype(np.float32)
    resized_h, resized_w = rule.resized_shape(height, width)
    if rule.resize == WARP:
        warp = warp_about_middle((height, width), (resized_h, resized_w))
        return warped(image_bgr, warp, resized_h, resized_w), warp
    if (resized_h, resized_w) != (height, width):
        image_bgr = RESIZERS[rule.resize](image_bgr, resized_h, resized_w)
    return image_bgr, None


BAND_DTYPES = ('uint8', 'uint16', 'int16', 'float32', 'float64')
"""Of pictures of bands: those that OpenCV resizes."""


def grey_of(image_bgr: np.ndarray) -> np.ndarray:
    """Grey levels (h, w) uint8 of a picture (h, w, 3); exact where the three channels are equal."""
    import cv2

    return cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY)


def resize_cv2(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear resize of (h, w, bands)."""
    import cv2

    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def warp_about_middle(size: tuple[int, int], new_size: tuple[int, int]) -> np.ndarray:
    """Matrix (3, 3) of mmdet3d's `AffineResize` without augmentation, from `size` to `new_size` (h, w)."""
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
    """Warp (h, w, 3) uint8 or float32 by `matrix` (3, 3, image to result pixels); black outside."""
    import cv2

    return cv2.warpAffine(image, matrix[:2].astype(np.float32), (width, height))


RESIZERS = {'cv2': resize_cv2, 'pillow': resize_pillow}


def normalise(image_bgr: np.ndarray, mean: Sequence[float], std: Sequence[float], to_rgb: bool) -> np.ndarray:
    """(h, w, bands) float32 `(image - mean) / std`, rounded as in mmdet."""
    import cv2

    image = image_bgr.astype(np.float32)
    if to_rgb:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    image = cv2.subtract(image, np.asarray(mean, np.float32).astype(np.float64).reshape(1, -1))
    return cv2.multiply(image, 1 / np.asarray(std, np.float32).astype(np.float64).reshape(1, -1))


@contextlib.contextmanager
def _decoder_messages() -> Iterator[list[str]]:
    """Capture file descriptor 2: OpenCV hides libjpeg's warnings."""
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
            texts = messages.read().splitlines(keepends=True)
            others = [text for text in texts if not OF_DECODER.search(text)]  # of threads that log meanwhile
            with contextlib.suppress(OSError):
                os.write(2, b''.join(others))
            lines += [text.decode('latin1').rstrip('\n') for text in texts]


def read_image(path: str | Path, color_type: str = 'color') -> np.ndarray:
    """Read (h, w, 3) uint8 BGR, turned by EXIF; 16 bits, gray and alpha are converted.

    With 'grayscale' the channels equal mmcv's, for a JPEG its luminance. With 'unchanged' the result is
    (h, w, bands) with the dtype of the file, which may be `.npy`. ImageError: missing, unreadable, damaged,
    or no image.
    """
    import cv2

    path = Path(path)
    try:
        if not path.is_file():
            raise ImageError(f'{path}: no such image file')
        content = path.read_bytes()
    except OSError as error:
        raise ImageError(f'{path}: cannot be read ({error.strerror or error})') from error
    if not content:
        raise ImageError(f'{path}: is empty (0 bytes), expected an image')
    if color_type == 'unchanged' and path.suffix.lower() == '.npy':
        try:
            return np.atleast_3d(load_arrays(path, 'image')['image'])
        except (DataError, KeyError) as error:
            raise ImageError(f'{path}: is not an array that np.load reads ({error})') from error
    flags = dict(color=cv2.IMREAD_COLOR, grayscale=cv2.IMREAD_GRAYSCALE, unchanged=cv2.IMREAD_UNCHANGED)
    with _decoder_messages() as messages:
        try:
            image = cv2.imdecode(np.frombuffer(content, np.uint8), flags[color_type])
        except cv2.error as error:
            raise ImageError(f'{path}: cannot be decoded by OpenCV ({error.err or error})') from error
    if image is None:
        raise ImageError(f'{path}: is not an image that OpenCV can decode')
    if damage := [line for line in messages if DAMAGE.search(line)]:
        raise ImageError(
            f'{path}: is damaged ({damage[0].strip()}); copy it again, or, if it looks right in a viewer, '
            f'save it again from there'
        )
    return np.repeat(image[..., None], 3, axis=2) if color_type == 'grayscale' else np.atleast_3d(image)


def list_images(paths: Iterable[str | Path]) -> list[Path]:
    """Files in the order of `paths`; a folder gives its images at any depth, sorted."""
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
    return images
