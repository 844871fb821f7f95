"""Inputs of a proof: pictures, drives, sweeps and voxels."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import cv2
import numpy as np

from mmdeploy_ext.base.errors import ConfigError, DataError, ImageError, one_line
from mmdeploy_ext.families.detector import checked_rule, prepare_fixed, rule_of
from mmdeploy_ext.families.images import batches, picture_of
from mmdeploy_ext.runtime.preprocess import DEFAULT_PICTURE
from mmdeploy_ext.runtime.preprocess.pictures import prepare_image
from mmdeploy_ext.runtime.preprocess.points import point_rule, voxelise
from mmdeploy_ext.runtime.sparse.engine import checked_features
from mmdeploy_ext.runtime.sparse.rulebook import Level
from mmdeploy_ext.runtime.sweeps import Sweeps, read_voxels
from mmdeploy_ext.spec.options import INPUT

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.families.sparse import EncoderSettings
    from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage
    from mmdeploy_ext.runtime.sparse.ir import Triple
    from mmdeploy_ext.spec.options import Options
    from mmdeploy_ext.spec.preparation import PreprocessRule, VoxelRule


# The inputs of a proof: the traced one, and inputs that show faults which it hides.


# Pictures of a proof: files of the user, generated ones, and views: mirrored, cut, dark, bright, zoomed.


DARK, LIT, WINDOW = 0.05, 0.5, 0.3
"""Factors of a dark picture: of every value; of its window, a small copy; and of the window's sides."""
PARTS = ((1, 1), (7 / 8, 3 / 4), (3 / 4, 7 / 8))
"""Shares of height and width of the part of a picture at index 0, 1 and 2 of a batch."""
NEXT_PARTS = 15 / 16
"""Factor of these shares for each further three indices."""
BRIGHT = 0.4
"""Factor of every value's distance to white in a bright picture."""
ROOM = 1.25
"""A picture larger than its place in the input by this factor is reduced."""


def other_view(image_bgr: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray((image_bgr[:, ::-1] * 0.8).astype(image_bgr.dtype))


def cut(image_bgr: np.ndarray, place: int = 1) -> np.ndarray:
    """Return the upper left part of a picture, see `PARTS`; `place` is its index in a batch."""
    height, width = part_of(image_bgr.shape[:2], place)
    return np.ascontiguousarray(image_bgr[:height, :width])


def part_of(size: tuple[int, int], place: int) -> tuple[int, int]:
    """Return the size (h, w) of a part of a picture of `size`, for the index `place` in a batch."""
    parts = PARTS[place % len(PARTS)]
    factor = NEXT_PARTS ** (place // len(PARTS))
    return tuple(max(int(side * part * factor), 1) for side, part in zip(size, parts, strict=True))


def dark(image_bgr: np.ndarray) -> np.ndarray:
    """Return a nearly black picture with a small visible copy in the middle."""
    height, width = (int(side * WINDOW) for side in image_bgr.shape[:2])
    y, x = ((side - part) // 2 for side, part in zip(image_bgr.shape[:2], (height, width), strict=True))
    picture = (image_bgr * DARK).astype(image_bgr.dtype)
    small = _reduced(image_bgr, (max(width, 1), max(height, 1)))
    picture[y : y + len(small), x : x + small.shape[1]] = (small * LIT).astype(image_bgr.dtype)
    return picture


def bright(image_bgr: np.ndarray) -> np.ndarray:
    return (255 - (255.0 - image_bgr) * BRIGHT).astype(image_bgr.dtype)


def zoomed(image_bgr: np.ndarray, box_xyxy: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the box (4,) of a picture, pixels, stretched to (h, w)."""
    height, width = image_bgr.shape[:2]
    x1, y1 = np.clip(np.floor(box_xyxy[:2]), 0, (width - 1, height - 1)).astype(int)
    x2, y2 = np.clip(np.ceil(box_xyxy[2:]), (x1 + 1, y1 + 1), (width, height)).astype(int)
    view = cv2.resize(image_bgr[y1:y2, x1:x2], size[::-1], interpolation=cv2.INTER_LINEAR)
    return view.reshape(*size, image_bgr.shape[2])


def filling(image_bgr: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a picture with an input's ratio of sides (H, W): no padding."""
    height, width = image_bgr.shape[:2]
    parts = size[1] * height / (size[0] * width)
    if parts >= 1:  # side by side
        axis, scale = 1, size[0] / height
    else:  # one above the other
        axis, scale, parts = 0, size[1] / width, 1 / parts
    if scale * ROOM < 1:
        smaller = max(round(width * scale * ROOM), 1), max(round(height * scale * ROOM), 1)
        image_bgr = _reduced(image_bgr, smaller)
    views = image_bgr, other_view(image_bgr)
    composed = np.concatenate([views[index % 2] for index in range(int(np.ceil(parts)))], axis)
    length = max(round(image_bgr.shape[axis] * parts), 1)
    return np.ascontiguousarray(composed[:, :length] if axis else composed[:length])


def _reduced(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    # means over areas are there for up to four bands
    interpolation = cv2.INTER_AREA if picture.shape[2] <= 4 else cv2.INTER_LINEAR
    return cv2.resize(picture, size, interpolation=interpolation).reshape(*size[::-1], picture.shape[2])


def with_bands(image_bgr: np.ndarray, bands: int) -> np.ndarray:
    """Return (h, w, bands) uint8: further bands are the three of a picture, moved to the right."""
    planes = [np.roll(image_bgr[..., band % 3], band // 3, axis=1) for band in range(bands)]
    return np.ascontiguousarray(np.stack(planes, axis=-1))


def titled(title: str, change: str) -> str:
    """Return the title of a changed picture: 'toy.jpg (mirrored, cut)'."""
    return f'{title[:-1]}, {change})' if title.endswith(')') else f'{title} ({change})'


PORTRAIT_HEIGHT, LARGEST_HEIGHT = 512, 1024
"""Height of the generated portrait, pixels, and its upper bound."""
LANDSCAPE_WIDTH, LANDSCAPE_HEIGHT = 307, 151
"""Size of the generated landscape, pixels; the height is an upper bound."""
ORIENTATION, TURNED = 0x0112, 6
"""EXIF's orientation tag; its value for a picture turned to the left."""
PORTRAIT_NAME, LANDSCAPE_NAME = 'generated portrait.jpg', 'generated landscape.png'


def sample_files(
    paths: Sequence[str | Path],
    picture: np.ndarray,
    edges: tuple[int, int] | None,
    folder: Path,
    banded: str = '',
) -> list[Path]:
    """Return the user's files, a portrait as JPEG, and a landscape as grey PNG of 16 bits.

    - `paths`: files of the user; without any `picture` (h, w, 3) uint8 BGR is written.
    - `edges`: resized height of a portrait and width of a landscape, pixels, or None.
    - `folder`: for the generated files.
    - `banded`: suffix of files with the bands of `picture` (h, w, bands), if the user has no such file.
    """
    files = [Path(file) for file in paths]
    tall, wide = edges or (None, None)
    if banded:
        suffix = files[0].suffix if files else banded
        sizes = {'portrait': portrait_size(tall), 'landscape': landscape_size(wide)}
        made = {name: with_bands(_noise(*size), picture.shape[2]) for name, size in sizes.items()}
        made |= {} if files else dict(sample=picture)
        return files + [
            write_array(folder / f'generated {name}{suffix}', array.astype(picture.dtype))
            for name, array in made.items()
        ]
    if not files:
        files.append(folder / 'sample.bmp')
        cv2.imwrite(str(files[0]), picture)
    return [*files, write_portrait(folder, tall), write_landscape(folder, wide)]


def portrait_size(edge: int | None) -> tuple[int, int]:
    """Return (h, w) of a narrow portrait with a resized width halfway between two pixels.

    `edge`: resized height, a multiple of 4 and not of 1024.
    """
    # w * edge / h ends in one half if w / h is odd / period, with period twice the power of two in edge
    period = 2 * (edge & -edge) if edge else 0
    if not 0 < period <= LARGEST_HEIGHT:
        return PORTRAIT_HEIGHT, PORTRAIT_HEIGHT // 2 - 3
    odd = max(period // 2 - 1, 1)
    if odd * edge * 2 // period % 4 == 3 and odd > 2:  # halfway above an odd number, which `round` rounds up
        odd -= 2
    height = max(PORTRAIT_HEIGHT, period)
    return height, height // period * odd


def landscape_size(edge: int | None) -> tuple[int, int]:
    """Return (h, w) of a wide landscape with a resized height that mmcv and `ceil` round differently."""
    heights = range(LANDSCAPE_HEIGHT, LANDSCAPE_HEIGHT // 2, -1)
    fractions = {height: height * (edge or 0) / LANDSCAPE_WIDTH % 1 for height in heights}
    fitting = (height for height, fraction in fractions.items() if 0.05 < fraction < 0.45)
    return next(fitting, LANDSCAPE_HEIGHT), LANDSCAPE_WIDTH


def write_portrait(folder: Path, edge: int | None) -> Path:
    """Write a portrait as a JPEG stored sideways, as telephones do."""
    from PIL import Image

    height, width = portrait_size(edge)
    stored = np.rot90(_noise(height, width))
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED
    path = folder / PORTRAIT_NAME
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, quality=95)
    return path


def write_landscape(folder: Path, edge: int | None) -> Path:
    path = folder / LANDSCAPE_NAME
    cv2.imwrite(str(path), _noise(*landscape_size(edge))[..., 0].astype(np.uint16) * 257)
    return path


def write_array(path: Path, array: np.ndarray) -> Path:
    """Write (h, w, bands) as `.npy` or a picture."""
    if path.suffix.lower() == '.npy':
        np.save(path, array)
    else:
        cv2.imwrite(str(path), array)
    return path


def _noise(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height * width)
    slope = np.linspace(0, 160, width)[:, None] * np.array([1.0, 0.5, 0.2])
    return (slope[None] + rng.integers(0, 96, (height, width, 3))).astype(np.uint8)


# Inputs of two runs of a model of pictures, for lint.


LARGER = 128
"""Pixels by which the second picture is higher; a multiple of every part's divisor."""


def observed_inputs(
    detector: Detector, options: Options, image_bgr: np.ndarray
) -> list[dict[str, np.ndarray]]:
    """Inputs of two runs of a model of pictures, by name, always with `border`.

    `border` (B, 2) are pixels of padding above and left. `image_bgr` is (h, w, 3) uint8.
    """
    family, runs = detector.family, []
    reference = family.reference(detector.model)
    larger = LARGER if options.dynamic else 0
    for view, extra in ((image_bgr, 0), (other_view(image_bgr), larger)):
        size = options.height + extra, options.width + 2 * extra
        image = prepare_fixed(detector.rule, view, *size)
        feeds = family.feeds([image], rescale=True)
        feeds.setdefault('border', np.zeros((1, 2), np.float32))  # left out of feeds where it is zero
        runs.append(feeds | reference.inner_inputs(feeds, options.form))
    return runs


Picture = tuple[str, np.ndarray]
"""Title, picture as the rule takes it: (h, w, 3) uint8 BGR, or (h, w, bands)."""
STRIDE = 32
NARROW = 128
SMALL = 320
SMALL_PICTURE = 224
"""Root of the pixels of a dynamic file's input that tests no size."""
LARGEST = 1_000_000
"""Pixels, height times width: upper bound of a larger `InputSizes.other`."""
Size = tuple[int, int]
LARGE_OBJECT = 512
"""Root of the pixels of an object of the last level of RoI extractors."""
BATCHES = (1, 2, 3)
"""Batches of a dynamic file: faults of batches begin at 2, faults of pairs at 3."""

PLAIN = dict(grey=128, black=0, white=255)
"""Title of a picture of one colour -> the value of all its pixels."""


@dataclasses.dataclass(frozen=True)
class ProofInput:
    """One input of the proof.

    Attributes:
        name: the condition that it tests.
        images: prepared images of one size, one per batch entry.
        sources: (title, picture) before preprocessing.
        traced: whether the exporter saw exactly this input.
        rescale: feed `scale_factor`, so that boxes are in pixels of the original picture.
        left_out: optional inputs that are not fed.
    """

    name: str
    images: tuple[PreparedImage, ...]
    sources: tuple[Picture, ...]
    traced: bool = False
    rescale: bool = False
    left_out: tuple[str, ...] = ()


def proof_inputs(detector: Detector, options: Options, images: Sequence[Picture]) -> list[ProofInput]:
    """Return the inputs of a proof, the traced one (from the first picture) first."""
    user_pictures = list(images)
    if len(images) == 1:
        images = [*images, (f'{images[0][0]} (mirrored)', other_view(images[0][1]))]
    if len({picture.shape for _, picture in images}) == 1:
        title, picture = images[1]
        images = [images[0], (titled(title, 'cut'), cut(picture)), *images[2:]]
    maker = _Inputs(detector, options, list(images))
    cases = [maker.traced(), *maker.batches()]
    if options.dynamic:
        cases += [*maker.by_rule(user_pictures), *maker.of_sizes()]
    else:
        cases += maker.of_one_size()
    return maker.optional_left_out(cases)


def plain_inputs(detector: Detector, options: Options) -> list[ProofInput]:
    """Return an input per colour of `PLAIN`: a detector finds nothing in most."""
    maker, inputs = _Inputs(detector, options, []), []
    for title, value in PLAIN.items():
        picture = title, np.full((*maker.small, detector.rule.picture_bands), value, np.uint8)
        pictures = [picture] * options.batch
        inputs.append(maker.fixed('plain image, nothing found', pictures, maker.small))
    return inputs


def zoomed_input(detector: Detector, options: Options, picture: Picture, box_xyxy: np.ndarray) -> ProofInput:
    """Return an input filled by the box (4,) of a picture, pixels."""
    maker, (title, image_bgr) = _Inputs(detector, options, []), picture
    size = smaller_size(detector, options, LARGE_OBJECT)
    view = zoomed(image_bgr, box_xyxy, size)
    pictures = [(titled(title, 'zoomed'), view)] * options.batch
    return maker.fixed('zoomed, one object fills the image', pictures, size)


def with_plain_picture(detector: Detector, case: ProofInput, plain: ProofInput) -> ProofInput:
    """Return a batch with a plain picture as its second one."""
    (title, picture), size = plain.sources[0], case.images[1].tensor.shape[1:]
    same_shape = np.full_like(case.sources[1][1], picture.flat[0])
    prepared = prepare_image(dataclasses.replace(detector.rule, size=tuple(size)), same_shape)
    images = (case.images[0], prepared, *case.images[2:])
    if prepared.tensor.shape[1:] != size or len(batches(detector.family, images)) > 1:
        return case
    sources = (case.sources[0], (title, same_shape), *case.sources[2:])
    return dataclasses.replace(case, images=images, sources=sources)


class _Inputs:
    def __init__(self, detector: Detector, options: Options, images: list[Picture]) -> None:
        self.detector, self.options, self.images = detector, options, images
        self.size = options.height, options.width
        self.sizes = other_sizes(detector, options) if options.dynamic else None
        self.small = smaller_size(detector, options)
        spec = detector.family.spec(detector.model, options)
        self.takes_batches = isinstance(spec.inputs[0].axes[0], str)
        self.optional = tuple(tensor.name for tensor in spec.inputs if tensor.default is not None)
        self.optional = () if options.required_inputs else self.optional

    def fixed(
        self,
        name: str,
        pictures: Sequence[Picture],
        size: tuple[int, int] | None = None,
        *,
        traced: bool = False,
        rescale: bool = True,
    ) -> ProofInput:
        family, size = self.detector.family, size or self.size
        prepared = self._prepare(pictures, size)
        if len(batches(family, prepared)) > 1:  # these need several runs, views of the first do not
            title, picture = pictures[0]
            views = (pictures[0], (titled(title, 'mirrored'), other_view(picture)))
            pictures = [views[index % 2] for index in range(len(pictures))]
            prepared = self._prepare(pictures, size)
        if not traced and len({picture.shape for _, picture in pictures}) == 1 < len(pictures):
            varied = [
                (titled(title, 'cut'), cut(picture, index)) if index else (title, picture)
                for index, (title, picture) in enumerate(pictures)
            ]
            varied_images = self._prepare(varied, size)
            if len(batches(family, varied_images)) == 1:
                pictures, prepared = varied, varied_images
            else:  # masks of one batch have one size: the content of the input is smaller
                prepared = tuple(
                    self._smaller(picture, size, index) if index else prepared[index]
                    for index, (_, picture) in enumerate(pictures)
                )
        return ProofInput(name, prepared, tuple(pictures), traced, rescale)

    def _prepare(self, pictures: Sequence[Picture], size: tuple[int, int]) -> tuple[PreparedImage, ...]:
        rule = self.detector.rule
        return tuple(prepare_fixed(rule, picture, *size) for _, picture in pictures)

    def _smaller(self, image_bgr: np.ndarray, size: tuple[int, int], place: int) -> PreparedImage:
        rule, inner = self.detector.rule, part_of(size, place)
        small = prepare_image(dataclasses.replace(rule, size=inner), image_bgr)
        tensor = np.empty((len(small.tensor), *size), np.float32)
        tensor[:] = np.float32(rule.pad_val)[: len(tensor), None, None]
        tensor[:, : inner[0], : inner[1]] = small.tensor
        return dataclasses.replace(small, tensor=tensor)

    def traced(self) -> ProofInput:
        pictures = [self.images[0]] * self.options.batch
        return self.fixed('traced input', pictures, traced=True, rescale=False)

    def batches(self) -> list[ProofInput]:
        batch, count = self.options.batch, len(self.images)
        cases = []
        if batch > 1:
            pictures = [self.images[index % count] for index in range(batch)]
            cases.append(self.fixed(f'batch of {batch} images', pictures))
        for other_batch in BATCHES if self.options.get('dynamic_batch') else ():
            if other_batch != batch:
                pictures = [self.images[index % count] for index in range(1, other_batch + 1)]
                cases.append(self.fixed(f'batch of {other_batch}', pictures))
        return cases

    def of_one_size(self) -> list[ProofInput]:
        (title, picture), height, batch = self.images[0], self.size[0], self.options.batch
        portrait = filling(picture, (height, height * 2 // 3))
        return [
            self.fixed('portrait in the input', [(titled(title, 'portrait'), portrait)] * batch),
            self.fixed('dark', [(titled(title, 'dark'), dark(picture))] * batch),
            self.fixed('bright', [(titled(title, 'bright'), bright(picture))] * batch),
            *(
                self.fixed('other image', [image] * batch, rescale=not index % 2)
                for index, image in enumerate(self.images[1:])
            ),
        ]

    def by_rule(self, pictures: Sequence[Picture]) -> list[ProofInput]:
        rule, cases = rule_of(self.detector, self.options), []
        for index, (title, picture) in enumerate(pictures):
            image = prepare_image(rule if index else self._scaled(rule), picture)
            size = image.tensor.shape[1:]
            if not fits(self.detector, self.options, size):
                cases.append(self.fixed('other image', [(title, picture)]))
            elif index or size != self.size:
                cases.append(
                    ProofInput('resized as in the config', (image,), ((title, picture),), rescale=True)
                )
        return cases

    def _scaled(self, rule: PreprocessRule) -> PreprocessRule:
        """Return the rule for `small`: the traced input shows its picture at the size of the rule."""
        if rule.img_scale is None or self.small == self.size:
            return rule
        factor = math.sqrt(math.prod(self.small) / math.prod(self.size))
        width, height = (max(round(side * factor), STRIDE) for side in rule.img_scale)
        return dataclasses.replace(rule, img_scale=(width, height))

    def of_sizes(self) -> list[ProofInput]:
        sizes, ((title, picture), second) = self.sizes, self.images[:2]
        most = BATCHES[-1] if self.takes_batches else self.options.batch

        def views(size: tuple[int, int], count: int) -> list[Picture]:
            views = (title, picture), (titled(title, 'mirrored'), other_view(picture)), second
            return [(titled(name, 'composed'), filling(view, size)) for name, view in views[:count]]

        return [
            self._unaligned(second, sizes.other, sizes.divisor),
            self.fixed('W > 2H', views(sizes.wide, 1), sizes.wide),
            self.fixed(
                'H > 2W' + (f', batch {most}' if most > 1 else ''), views(sizes.tall, most), sizes.tall
            ),
            self.fixed('dark', [(titled(title, 'dark'), dark(picture))], self.small),
            self.fixed('bright', [(titled(title, 'bright'), bright(picture))], self.small),
        ]

    def optional_left_out(self, cases: list[ProofInput]) -> list[ProofInput]:
        if not self.optional:
            return cases
        alone = [(name,) for name in self.optional] if len(self.optional) > 1 else []
        hosts = 'dark', 'bright', 'portrait in the input', 'W > 2H', 'other image'
        indices = [index for name in hosts for index, case in enumerate(cases) if case.name == name]
        for index, names in zip(indices, [self.optional, *alone], strict=False):
            name = f'{cases[index].name}, without input {" and ".join(names)}'
            images = cases[index].images
            if self.options.input != INPUT.default and 'img_shape' in names:
                images = tuple(map(self._padded_by_pixels, images))
            cases[index] = dataclasses.replace(
                cases[index], name=name, images=images, rescale=True, left_out=names
            )
        return cases

    def _padded_by_pixels(self, image: PreparedImage) -> PreparedImage:
        from mmdeploy_ext.families.host_programs import pixels_of

        pixels = pixels_of(self.options, self.detector.rule)
        tensor = pixels.normalised(pixels.of_normalised(image.tensor[None]))[0]
        return dataclasses.replace(image, tensor=np.ascontiguousarray(tensor))

    def _unaligned(self, image: Picture, size: tuple[int, int], step: int) -> ProofInput:
        scale = max(size[1], STRIDE), max(size[0], STRIDE)
        changes = dict(size=None, pad_size=None, pad_or=0, keep_ratio=False, size_divisor=step)
        prepared = prepare_image(
            dataclasses.replace(self.detector.rule, **changes, img_scale=scale), image[1]
        )
        height, width = prepared.img_shape
        if step == 1:
            return ProofInput(
                f'sides that are not multiples of {STRIDE}', (prepared,), (image,), rescale=True
            )
        padded = (height, width) != prepared.tensor.shape[1:]
        name = f'other size, padded from {height}x{width}' if padded else 'other size'
        return ProofInput(name, (prepared,), (image,))


@dataclasses.dataclass(frozen=True)
class InputSizes:
    """Sizes (H, W) of a dynamic graph's inputs, pixels.

    Attributes:
        wide: odd multiples of 32 or more; W exceeds the traced W, and 2 H if the graph takes it.
        tall: even multiples; H exceeds the traced H, and 2 W if the graph takes it.
        other: before padding; both sides longer than traced (or shorter above `LARGEST`), and no multiples of
            `STRIDE`, if the graph takes it.
        divisor: `other` is padded to multiples of it.
    """

    wide: Size
    tall: Size
    other: Size
    divisor: int


def other_sizes(detector: Detector, options: Options) -> InputSizes:
    """Return sizes that a file with these options takes, see `ImageReference.takes`."""
    image = picture_of(detector.family, detector.model, options)
    takes = functools.partial(detector.family.reference(detector.model).takes, image)
    step = math.lcm(STRIDE, image.multiple)
    height, width = options.height, options.width
    other = int(height * 1.25) - 7, int(width * 1.125) + 5
    if math.prod(_aligned(other, step)) > LARGEST:
        shrink = min(0.75, SMALL / max(height, width))
        smaller = int(height * shrink) - 7, int(width * shrink) + 5
        other = smaller if takes(*_aligned(smaller, step)) else other
    fine = tuple(side // image.multiple * image.multiple for side in other)
    is_fine = image.multiple < STRIDE and takes(*fine)
    high, broad = _odd(int(height * 1.125), step) + step, _odd(int(width * 1.125), step)
    return InputSizes(
        wide=_grown((_narrow(broad, step, 1), broad), 2 * step, takes),
        tall=_grown((high, _narrow(high, step, 0)), 2 * step, takes),
        other=fine if is_fine else other,
        divisor=1 if is_fine else step,
    )


def smaller_size(detector: Detector, options: Options, root: int = SMALL_PICTURE) -> Size:
    """Return a size of about `root` squared that the file takes, at most the traced size."""
    image = picture_of(detector.family, detector.model, options)
    size = options.height, options.width
    scale = root / math.sqrt(math.prod(size))
    if scale >= 1 or not options.dynamic:
        return size
    smaller = _aligned(tuple(math.ceil(side * scale) for side in size), math.lcm(STRIDE, image.multiple))
    return smaller if detector.family.reference(detector.model).takes(image, *smaller) else size


def fits(detector: Detector, options: Options, size: Size) -> bool:
    """Whether a dynamic file takes an input of a size."""
    image = picture_of(detector.family, detector.model, options)
    aligned = not any(side % image.multiple for side in size)
    return aligned and detector.family.reference(detector.model).takes(image, *size)


def _narrow(long: int, step: int, remainder: int) -> int:
    count = min(NARROW, (long - 1) // 2) // step
    return max(count - (count % 2 != remainder), 1) * step


def _aligned(size: Size, step: int) -> Size:
    return tuple(-(-max(side, 1) // step) * step for side in size)


def _odd(side: int, step: int) -> int:
    count = -(-side // step)
    return (count + 1 - count % 2) * step


def _grown(size: Size, step: int, takes: Callable[[int, int], bool]) -> Size:
    while not takes(*size) and max(size) < 64 * step:
        size = size[0] + step, size[1] + step
    return size


# Samples of a proof, and pictures: files of the user, and of the data set of the config.


MAX_IMAGES = 8
"""Largest number of pictures of the user in a proof, which adds changed ones."""
DATA_SET_PICTURES = 3
"""Largest number of pictures of `data.test` in a proof, if the user names none."""


def picture_files(paths: Iterable[str | Path], limit: int = MAX_IMAGES) -> list[Path]:
    """Return the files of images, and of images in and below folders, at most `limit`."""
    from mmdeploy_ext.runtime.preprocess.pictures import list_images

    files = list_images(paths)
    if len(files) > limit > 1:
        print(f'{len(files)} images given, only the first {limit} are used')
    return files[:limit]


def read_images(
    paths: Iterable[str | Path], limit: int = MAX_IMAGES, rule: PreprocessRule | None = None
) -> list[tuple[str, np.ndarray]]:
    """Return (file name, picture as `rule` takes it) of images, also in folders, at most `limit`.

    Without a rule pictures are (h, w, 3) uint8 BGR.
    """
    return [(file.name, read_picture(file, rule)) for file in picture_files(paths, limit)]


def read_picture(path: str | Path, rule: PreprocessRule | None = None) -> np.ndarray:
    """Return a picture as `rule` takes it; the package's picture gets the bands that it lacks."""
    from mmdeploy_ext.runtime.preprocess.pictures import read_image

    if rule is None or rule.color_type != 'unchanged':
        return read_image(path)
    if is_default(path):
        return with_bands(read_image(path), rule.bands)
    picture = read_image(path, rule.color_type)
    if picture.shape[2:] != (rule.bands,):
        raise ImageError(
            f'{path}: got an array of shape {picture.shape}, expected (h, w, {rule.bands}), since mean of '
            f'Normalize has {rule.bands} values'
        )
    return picture


def is_default(path: str | Path) -> bool:
    return Path(path).resolve() == DEFAULT_PICTURE.resolve()


class ChosenSamples(NamedTuple):
    """Samples of a proof as `prove` takes them.

    Attributes:
        samples: named pictures, frames, sweeps or voxels.
        origin: source of frames and sweeps in words.
        files: paths of the pictures.
    """

    samples: Collection[Any]
    origin: str = ''
    files: Sequence[Path] = ()


class Samples(Protocol):
    """The samples of a proof: what the user named is checked at once, the rest is read with a model.

    Attributes:
        pictures: (file name, picture as the rule takes it) of each picture; () for other samples.
    """

    pictures: Sequence[tuple[str, np.ndarray]]

    def of(self, detector: Detector) -> ChosenSamples:
        """Return the samples; errors have exit status 1."""


class PictureSamples:
    """Pictures, which are read at once.

    Attributes:
        paths: files and folders of the user.
        files: path of each picture.
    """

    def __init__(self, detector: Detector, paths: Sequence[str | Path], traced: str | Path = '') -> None:
        """Read the pictures before the weights load.

        - `paths`: files and folders; empty: the package's picture and the config's data set.
        - `traced`: picture before the pictures of `paths`; with it the package's is left out.
        """
        self.paths = paths
        self.files = picture_files([traced], 1) if traced else []
        if paths or not traced:
            self.files += picture_files(paths or [DEFAULT_PICTURE])
        rule = checked_rule(detector.cfg, detector.family)
        self.pictures = read_images(self.files, len(self.files), rule)

    def of(self, detector: Detector) -> ChosenSamples:
        if self.paths:
            return ChosenSamples(self.pictures, files=self.files)
        pictures, files, origin = data_set_pictures(detector.cfg, detector.rule)
        return ChosenSamples([*self.pictures, *pictures], origin, [*self.files, *files])


def data_set_pictures(
    cfg: Any, rule: PreprocessRule | None = None
) -> tuple[list[tuple[str, np.ndarray]], list[Path], str]:
    """Return pictures spread over `data.test`, their paths, and a text for the verdict.

    Nothing is returned where the files of `data.test` are not there. Where it cannot be read the text says
    why.
    """
    from mmdeploy_ext.families.evaluate.evaluation import AbsentDataError, build_dataset, inner_datasets

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools says that it loads
            dataset = build_dataset(cfg)
        paths = [
            Path(one.img_prefix or '', info['filename'])
            for one in inner_datasets(dataset)
            for info in one.data_infos
        ]
        count = len(paths)
        number = min(DATA_SET_PICTURES, count)
        files = [paths[index * count // number] for index in range(number)]
        pictures = read_images(files, rule=rule)
    except (AbsentDataError, ConfigError):
        return [], [], ''
    except Exception as error:  # a user's class raises what it likes
        return [], [], f'without data.test ({type(error).__name__}: {one_line(error)[:150]})'
    return pictures, files, f'{len(files)} of {count} of data.test'


# Voxels for the proof of a sparse backbone: the traced input, and different ones.


CLUSTERS, CLUSTER_VOXELS, SPREAD = 160, 8, 2
"""Clusters of the random set, voxels in each, and largest distance from the centre."""


@dataclasses.dataclass(frozen=True)
class VoxelSet:
    """The voxels of one input.

    Attributes:
        features: (N, C) float32.
        coordinates: (N, 4) int32: sample 0, then the axes in the encoder's order.
        traced: whether the exporter saw it.
    """

    name: str
    features: np.ndarray
    coordinates: np.ndarray
    traced: bool = False


def in_order(coordinates: np.ndarray, same: bool) -> np.ndarray:
    """Return coordinates (N, 4) in a file's order of axes, reversed unless `same`."""
    return coordinates if same else np.ascontiguousarray(coordinates[:, [0, 3, 2, 1]])


def proof_sets(spatial_shape: Triple, channels: int) -> list[VoxelSet]:
    """Return the traced input and five others, equal at every call."""
    rng, shape = np.random.default_rng(0), np.array(spatial_shape)
    voxels = {
        'no voxel': np.zeros((0, 3), np.int64),
        'one voxel': np.array([shape // 2]),
        'borders and corners': borders(shape),
        'random clusters': clusters(shape, rng),
        'a full block': full_block(shape),
    }
    sets = [VoxelSet('traced input', np.zeros((1, channels), np.float32), np.zeros((1, 4), np.int32), True)]
    for name, axes in voxels.items():
        features = rng.standard_normal((len(axes), channels)).astype(np.float32)
        sets.append(VoxelSet(name, features, np.pad(axes, ((0, 0), (1, 0))).astype(np.int32)))
    return sets


def points_of(source: str, cfg: Any, rule: VoxelRule, limit: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, points (P, D) float32) of sweeps, x, y, z in metres first.

    Args:
        source: raw float32 points (.bin), an array (.npy), a folder of them, or infos of mmdet3d.
        cfg: for the columns of the files and the folder of the data set.
        rule: how points become voxels.
        limit: most sweeps of a folder or of infos, evenly chosen; 0: all.
    """
    sweeps = _sweeps(source, cfg, rule, limit)
    for item in sweeps.items:
        if getattr(item, 'suffix', '') == '.npz':
            raise DataError(f'{item}: has voxels, the model expects points; pass a sweep (.bin, .npy)')
        yield sweeps.name(item), sweeps.points(item)


def sweep_sets(
    source: str, rule: VoxelRule, cfg: Any, settings: EncoderSettings, limit: int
) -> Iterator[VoxelSet]:
    """Yield the voxels of sweeps; see `points_of`."""
    sweeps = _sweeps(source, cfg, rule, limit)
    for item in sweeps.items:
        if getattr(item, 'suffix', '') == '.npz':
            yield _read_set(item, rule, settings)
            continue
        points = sweeps.points(item)
        features, coordinates = voxelise(points, rule)
        if not len(features):
            raise DataError(
                f'{item if isinstance(item, Path) else source}: 0 of {len(points)} points are in the range '
                f'{list(rule.point_cloud_range)} m; check its frame and unit'
            )
        yield VoxelSet(f'{sweeps.name(item)}: {len(points)} points', features, coordinates)


def _sweeps(source: str, cfg: Any, rule: VoxelRule, limit: int) -> Sweeps:
    root = ((cfg.get('data') or {}).get('test') or {}).get('data_root')
    points_rule = point_rule(cfg, rule.in_channels)
    return Sweeps(source, lambda points: voxelise(points, rule), points_rule, root, limit)


def _read_set(path: Path, rule: VoxelRule, settings: EncoderSettings) -> VoxelSet:
    features, coordinates = read_voxels(path, settings.order)
    if rule.mode == 'hard' and len(features) > rule.max_voxels:
        raise DataError(
            f'{path}: {len(features)} voxels, the model accepts at most {rule.max_voxels} (max_voxels); '
            'remove some or pass the points'
        )
    try:
        level = Level(coordinates, settings.spatial_shape)
        _ = level.hash  # finds voxels that are there twice
        checked_features(features, len(level), settings.in_channels)
    except DataError as error:
        raise DataError(f'{path}: {error}') from error
    return VoxelSet(path.name, features, coordinates)


def borders(shape: np.ndarray) -> np.ndarray:
    """Return voxels (n, 3) on corners, edges and faces of a grid, with neighbours."""
    values = [sorted({0, 1, size // 2, size - 2, size - 1}) for size in shape]
    voxels = np.array([*itertools.product(*values)])
    voxels = voxels[((voxels == 0) | (voxels == shape - 1)).any(1)]
    return np.unique(np.clip(voxels, 0, shape - 1), axis=0)


def clusters(shape: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    centres = rng.integers(0, shape, (CLUSTERS, 1, 3))
    around = centres + rng.integers(-SPREAD, SPREAD + 1, (CLUSTERS, CLUSTER_VOXELS, 3))
    voxels = np.unique(np.clip(around.reshape(-1, 3), 0, shape - 1), axis=0)
    return rng.permutation(voxels)


def full_block(shape: np.ndarray) -> np.ndarray:
    """Return all voxels (n, 3) of the last six indices of each axis: no inner neighbour is missing."""
    lower = np.maximum(shape - 6, 0)
    axes = [np.arange(low, size) for low, size in zip(lower, shape, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing='ij'), -1).reshape(-1, 3)
