"""The inputs of a proof: the traced one, and inputs that show faults which the traced one does not.

A dynamic file gets batches of 1, 2 and 3; landscape, portrait, wide and tall inputs; every picture of the
user, at the size that the config's rule makes of it if the graph takes that. Every file gets a dark and a
bright picture, a plain one if PyTorch finds nothing in it, and optional inputs left out, each alone and all
together. One input shows several faults.

The images of a batch differ but for the traced input: where pictures have one size, those behind the first
are cut, or reduced within the input if one run cannot take the cut ones.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.families.model import prepare_fixed, rule_of
from mmdeploy_ext.proving.inputs.pictures import (
    bright,
    cut,
    dark,
    filling,
    other_view,
    part_of,
    titled,
    zoomed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mmdeploy_ext.contract.options import Options
    from mmdeploy_ext.families.model import Model
    from mmdeploy_ext.preprocess.pictures import PreparedImage

Picture = tuple[str, np.ndarray]
"""Title, (h, w, 3) uint8 BGR."""
STRIDE = 32
"""Pixels. The pipelines of most configs pad to it; an odd multiple of it is no multiple of 64 or 128."""
LONG = 640
"""Pixels. The size at which most models are traced: one input is wider and one is higher."""
NARROW = 224
"""Pixels. About the short side of these two inputs, for speed."""
SMALL = 320
"""Pixels. About the longest side of sizes that only have to differ from the traced one."""
LARGEST = 1_000_000
"""Pixels, height times width, of `InputSizes.larger` at most."""
Size = tuple[int, int]
"""Height and width, pixels."""
BATCHES = (1, 2, 3)
"""Batches of a file with a dynamic batch: faults of batches begin at 2, and those of pairs at 3."""

PLAIN = dict(grey=128, black=0, white=255)
"""Title of a picture of one colour -> the value of all its pixels."""


@dataclasses.dataclass(frozen=True)
class ProofInput:
    """One input of the proof.

    Attributes:
        name: the condition that it tests.
        images: prepared images of one size, one per batch entry.
        sources: (title, picture) of each image, before it was resized and normalised.
        traced: whether the exporter saw exactly this input.
        rescale: whether `scale_factor` is fed, too, so that boxes are in pixels of the original picture.
        left_out: names of optional inputs that are not fed.
    """

    name: str
    images: tuple[PreparedImage, ...]
    sources: tuple[Picture, ...]
    traced: bool = False
    rescale: bool = False
    left_out: tuple[str, ...] = ()


def proof_inputs(deployment: Model, options: Options, images: Sequence[Picture]) -> list[ProofInput]:
    """Return the inputs of a proof, the traced one first, which is made of the first picture.

    Plain and zoomed pictures are not among them. A mirrored picture is added to a single one; if all pictures
    have one size the second is cut. `images` are titles and pictures.
    """
    user_pictures = list(images)
    if len(images) == 1:
        images = [*images, (f'{images[0][0]} (mirrored)', other_view(images[0][1]))]
    if len({picture.shape for _, picture in images}) == 1:
        title, picture = images[1]
        images = [images[0], (titled(title, 'cut'), cut(picture)), *images[2:]]
    maker = _Inputs(deployment, options, list(images))
    cases = [maker.traced(), *maker.batches()]
    if options.dynamic:
        cases += [*maker.by_rule(user_pictures), *maker.of_sizes()]
    else:
        cases += maker.of_one_size()
    cases = maker.optional_left_out(cases)
    if options.dynamic and maker.sizes.larger:  # than the traced one in both directions
        cases.append(maker.fixed('other size, batch 2', [images[1], images[0]], maker.sizes.larger))
    return cases


def plain_inputs(deployment: Model, options: Options) -> list[ProofInput]:
    """Return an input per colour of `PLAIN`, at the traced size: a detector finds nothing in most."""
    maker, size, inputs = _Inputs(deployment, options, []), (options.height, options.width), []
    for title, value in PLAIN.items():
        picture = title, np.full((*size, 3), value, np.uint8)
        inputs.append(maker.fixed('plain picture, nothing found', [picture] * options.batch))
    return inputs


def zoomed_input(deployment: Model, options: Options, picture: Picture, box_xyxy: np.ndarray) -> ProofInput:
    """Return the part of a picture in a box (4,), pixels, as an input of the traced size, which it fills."""
    title, image_bgr = picture
    view = zoomed(image_bgr, box_xyxy, (options.height, options.width))
    pictures = [(titled(title, 'zoomed'), view)] * options.batch
    return _Inputs(deployment, options, []).fixed('zoomed, an object fills it', pictures)


def with_plain_picture(deployment: Model, case: ProofInput, plain: ProofInput) -> ProofInput:
    """Return a batch with the plain picture of another input in place of its second one.

    The batch is returned unchanged if one run cannot take these pictures together.
    """
    (title, picture), size = plain.sources[0], case.images[1].tensor.shape[1:]
    same_shape = np.full_like(case.sources[1][1], picture.flat[0])
    prepared = dataclasses.replace(deployment.rule, size=tuple(size)).apply(same_shape)
    images = (case.images[0], prepared, *case.images[2:])
    if prepared.tensor.shape[1:] != size or len(deployment.family.batches(images)) > 1:
        return case
    sources = (case.sources[0], (title, same_shape), *case.sources[2:])
    return dataclasses.replace(case, images=images, sources=sources)


class _Inputs:
    """Makes the inputs of one file, of `images`; `size` is (H, W) of the traced one."""

    def __init__(self, deployment: Model, options: Options, images: list[Picture]) -> None:
        self.deployment, self.options, self.images = deployment, options, images
        self.size = options.height, options.width
        self.sizes = other_sizes(deployment, options) if options.dynamic else None
        spec = deployment.family.spec(deployment.model, options)
        self.optional = tuple(tensor.name for tensor in spec.inputs if tensor.default is not None)

    def fixed(
        self,
        name: str,
        pictures: Sequence[Picture],
        size: tuple[int, int] | None = None,
        *,
        traced: bool = False,
        rescale: bool = True,
    ) -> ProofInput:
        """Return pictures as one batch of a size (H, W), by default the traced one.

        Pictures of equal size are cut differently: a graph may take the size of the first image for all.
        """
        batches, size = self.deployment.family.batches, size or self.size
        prepared = self._prepare(pictures, size)
        if len(batches(prepared)) > 1:  # these need several runs, views of the first do not
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
            if len(batches(varied_images)) == 1:
                pictures, prepared = varied, varied_images
            else:  # masks of one batch have one size: the content of the input is smaller
                prepared = tuple(
                    self._smaller(picture, size, index) if index else prepared[index]
                    for index, (_, picture) in enumerate(pictures)
                )
        return ProofInput(name, prepared, tuple(pictures), traced, rescale)

    def _prepare(self, pictures: Sequence[Picture], size: tuple[int, int]) -> tuple[PreparedImage, ...]:
        rule = self.deployment.rule
        return tuple(prepare_fixed(rule, picture, *size) for _, picture in pictures)

    def _smaller(self, image_bgr: np.ndarray, size: tuple[int, int], place: int) -> PreparedImage:
        """Return an image whose content takes a part of the input; `place` is its index in the batch."""
        rule, inner = self.deployment.rule, part_of(size, place)
        small = dataclasses.replace(rule, size=inner).apply(image_bgr)
        tensor = np.empty((len(small.tensor), *size), np.float32)
        tensor[:] = np.float32(rule.pad_val)[:, None, None]
        tensor[:, : inner[0], : inner[1]] = small.tensor
        return dataclasses.replace(small, tensor=tensor)

    def traced(self) -> ProofInput:
        """Return the input that the exporter saw."""
        pictures = [self.images[0]] * self.options.batch
        return self.fixed('traced input', pictures, traced=True, rescale=False)

    def batches(self) -> list[ProofInput]:
        """Return the traced size with other images in each place of the batch, and other batches."""
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
        """Return other pictures at the one size of a fixed file: content of a portrait, dark, bright."""
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
        """Return every picture of the user at the size that the config's rule makes of it."""
        rule, cases = rule_of(self.deployment, self.options), []
        for index, (title, picture) in enumerate(pictures):
            image = rule.apply(picture)
            size = image.tensor.shape[1:]
            if not fits(self.deployment, self.options, size):
                cases.append(self.fixed('other image', [(title, picture)]))
            elif index or size != self.size:
                cases.append(ProofInput("by the config's rule", (image,), ((title, picture),), rescale=True))
        return cases

    def of_sizes(self) -> list[ProofInput]:
        """Return inputs of other sizes, each with a further condition."""
        sizes, (first, second) = self.sizes, self.images[:2]
        title, picture = first

        def views(size: tuple[int, int], count: int) -> list[Picture]:
            views = (title, picture), (titled(title, 'mirrored'), other_view(picture)), second
            return [(titled(name, 'composed'), filling(view, size)) for name, view in views[:count]]

        cases = [
            self._unaligned(second, sizes.unaligned, sizes.step),
            self.fixed('W > 2H, batch 2', views(sizes.wide, 2), sizes.wide),
            self.fixed('H > 2W', views(sizes.tall, 1), sizes.tall),
            self.fixed('portrait, batch 3', views(sizes.portrait, 3), sizes.portrait),
            self.fixed('dark', [(titled(title, 'dark'), dark(picture))], sizes.landscape),
            self.fixed('bright', [(titled(title, 'bright'), bright(picture))], sizes.landscape),
        ]
        if sizes.fine:
            cases.append(self._unaligned(first, sizes.fine, 1))
        return cases

    def optional_left_out(self, cases: list[ProofInput]) -> list[ProofInput]:
        """Return the cases, with all optional inputs left out of one, and each out of another.

        The content of these cases fills an aligned input, so that defaults fit them.
        """
        if not self.optional:
            return cases
        alone = [(name,) for name in self.optional] if len(self.optional) > 1 else []
        hosts = ('dark', 'bright', 'H > 2W', 'portrait in the input', 'W > 2H, batch 2', 'other image')
        indices = [index for name in hosts for index, case in enumerate(cases) if case.name == name]
        for index, names in zip(indices, [self.optional, *alone], strict=False):
            name = f'{cases[index].name}, without {" and ".join(names)}'
            cases[index] = dataclasses.replace(cases[index], name=name, rescale=True, left_out=names)
        return cases

    def _unaligned(self, image: Picture, size: tuple[int, int], step: int) -> ProofInput:
        scale = max(size[1], STRIDE), max(size[0], STRIDE)
        changes = dict(size=None, pad_size=None, pad_or=0, keep_ratio=False, size_divisor=step)
        prepared = dataclasses.replace(self.deployment.rule, **changes, img_scale=scale).apply(image[1])
        height, width = prepared.img_shape
        if step == 1:
            return ProofInput(f'sides that are no multiple of {STRIDE}', (prepared,), (image,), rescale=True)
        padded = (height, width) != prepared.tensor.shape[1:]
        name = f'other size, padded from {height}x{width}' if padded else 'other size'
        return ProofInput(name, (prepared,), (image,))


@dataclasses.dataclass(frozen=True)
class InputSizes:
    """Sizes (H, W) of a dynamic graph's inputs, pixels.

    Attributes:
        landscape: about as large as `unaligned`, H an odd multiple of `step`, W larger.
        portrait: about as large as `unaligned`, H larger than W.
        wide: W more than twice H, over `LONG` and over the traced W.
        tall: H more than twice W, over `LONG` and over the traced H.
        unaligned: the size before padding, rarely a multiple of `STRIDE`; smaller than the traced one if
            possible.
        fine: `unaligned` rounded down to multiples that the graph takes, and not padded; or None.
        larger: than the traced size on both sides, or None.
        step: `unaligned` is padded to multiples of it.
    """

    landscape: Size
    portrait: Size
    wide: Size
    tall: Size
    unaligned: Size
    fine: Size | None
    larger: Size | None
    step: int = STRIDE


def other_sizes(deployment: Model, options: Options) -> InputSizes:
    """Return the sizes for a file with these options, which are sizes that it takes, see `ImageFamily.takes`.

    `unaligned` is one when it is padded. A graph that takes none that is near is given one it does not take.
    """
    image = deployment.family.picture(deployment.model, options)
    takes = functools.partial(deployment.family.takes, deployment.model, options)
    step = math.lcm(STRIDE, image.multiple)
    height, width = options.height, options.width
    shrink = min(0.75, SMALL / max(height, width))
    unaligned = int(height * shrink) - 7, int(width * shrink) + 5
    if not takes(*_aligned(unaligned, step)):
        unaligned = int(height * 1.75) - 7, int(width * 1.5) + 5
    short, long = sorted(_aligned(unaligned, step))
    larger = tuple(
        max(int(side * factor) // step, side // step + 1) * step
        for side, factor in ((height, 1.25), (width, 1.125))
    )
    fine = tuple(size // image.multiple * image.multiple for size in unaligned)
    return InputSizes(
        landscape=_grown((_odd(short, step), max(long, _odd(short, step) + step)), 2 * step, takes),
        portrait=_grown((_odd(long, step) + step * (long == short), short), 2 * step, takes),
        wide=_grown((_odd(NARROW, step), _odd(_beyond(width), step)), 2 * step, takes),
        tall=_grown((_odd(_beyond(height), step), _odd(NARROW, step) - step), 2 * step, takes),
        unaligned=unaligned,
        fine=fine if image.multiple < STRIDE and takes(*fine) else None,
        larger=larger if larger[0] * larger[1] <= LARGEST and takes(*larger) else None,
        step=step,
    )


def fits(deployment: Model, options: Options, size: Size) -> bool:
    """Return whether a dynamic file with these options takes an input of a size."""
    image = deployment.family.picture(deployment.model, options)
    aligned = not any(side % image.multiple for side in size)
    return aligned and deployment.family.takes(deployment.model, options, *size)


def _beyond(traced: int) -> int:
    return max(int(traced * 1.125), LONG + 1)


def _aligned(size: Size, step: int) -> Size:
    return tuple(-(-max(side, 1) // step) * step for side in size)


def _odd(side: int, step: int) -> int:
    count = -(-side // step)
    return (count + 1 - count % 2) * step


def _grown(size: Size, step: int, takes: Callable[[int, int], bool]) -> Size:
    while not takes(*size) and max(size) < 64 * step:
        size = size[0] + step, size[1] + step
    return size
