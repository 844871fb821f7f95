"""Inputs, outputs and stages of image graphs, and prepared pictures as feeds.

Glossary: B batch, a priors of a cell, A priors of all levels, K proposals, H, W network input in pixels, h, w
size of a level's maps, n detections of the fullest image, or a constant of the file.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.base.errors import ShapeError, UsageError
from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.exporting.postprocess.suppression import capped
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import Stage, TensorSpec
from mmdeploy_ext.upstream.operators.operator import hw


def image_input(
    options: Options, smallest: int, multiple: int, padded: str = 'bottom and right'
) -> TensorSpec:
    """Return `input` (B, 3, H, W); `smallest` side in pixels, `multiple` of both sides if dynamic."""
    if not options.dynamic and min(options.height, options.width) < smallest:
        raise UsageError(
            f'--shape {options.height} {options.width}: each side has to be at least {smallest} pixels for '
            f'this model'
        )
    size = ('B', 3, 'H', 'W') if options.dynamic else (options.batch, 3, options.height, options.width)
    meaning = f'normalised images, padded {padded}'
    return TensorSpec('input', 'float32', size, meaning, smallest=smallest, multiple=multiple)


def optional_inputs(batch: int | str, clips: bool, bordered: bool = False) -> tuple[TensorSpec, ...]:
    """Return the specs of `img_shape`, used if boxes are clipped, and `scale_factor`."""
    size = 'height and width before padding; boxes are clipped to it; 0 means the input size'
    ratios = 'w h w h ratios, input / original; boxes are divided by it'
    padding = 'rows of padding above the image and columns left of it; subtracted from boxes'
    inputs = (
        TensorSpec('img_shape', 'float32', (batch, 2), size, 'pixel', default=0.0, unused=not clips),
        TensorSpec('scale_factor', 'float32', (batch, 4), ratios, default=1.0),
        TensorSpec('border', 'float32', (batch, 2), padding, 'pixel', default=0.0),
    )
    return inputs if bordered else inputs[:2]


def box_outputs(batch: int | str, rows: int | str) -> tuple[TensorSpec, ...]:
    boxes = (
        'x1 y1 x2 y2 score in descending score order; pixels of the network input, of the original image '
        'when scale_factor is fed; padded with zeros'
    )
    labels = 'class indices; -1 where dets is padding'
    return (
        TensorSpec('dets', 'float32', (batch, rows, 5), boxes, compare='detections'),
        TensorSpec('labels', 'int64', (batch, rows), labels, compare='detections'),
    )


def results_and_candidates(
    results: Callable[[int | str, int | str], tuple[TensorSpec, ...]],
    options: Options,
    *limits: int,
    pairs: str = 'prior',
) -> tuple[TensorSpec, ...]:
    """Return the outputs of a `full` graph, with `candidates` if the options limit them."""
    batch, cap = 'B' if options.dynamic else options.batch, options.max_candidates
    if not cap:
        return results(batch, 'n')
    meaning = f'({pairs}, class) pairs above the score threshold; if more than {cap}, the rest was dropped'
    candidates = TensorSpec('candidates', 'int64', (batch,), meaning, compare='detections')
    return (*results(batch, capped(cap, *limits)), candidates)


PROPOSALS = 'proposals'

Axis = int | str
"""Size of an axis, or the letter of a dynamic one."""


def mask_inputs(
    batch: Axis, zero: str = '0 means the input size, rounded up to a multiple of 8'
) -> tuple[TensorSpec, ...]:
    """Return the specs of `img_shape` and `ori_shape`; `zero` is the meaning of 0."""
    content = f'height and width before padding; masks are cropped to it; {zero}'
    original = f'height and width of the original images; masks are resized to it; {zero}'
    return (
        TensorSpec('img_shape', 'float32', (batch, 2), content, 'pixel', default=0.0),
        TensorSpec('ori_shape', 'int64', (2,), original, 'pixel', default=0),
    )


def mask_outputs(batch: Axis, rows: Axis) -> tuple[TensorSpec, ...]:
    pixels, order = 'masks of the instances at ori_shape', 'scores in descending order; padded with zeros'
    labels = 'class indices; -1 where a row is padding'
    return (
        TensorSpec('masks', 'bool', (batch, rows, 'h', 'w'), pixels, compare='detections'),
        TensorSpec('scores', 'float32', (batch, rows), order, compare='detections'),
        TensorSpec('labels', 'int64', (batch, rows), labels, compare='detections'),
    )


def clip_size(image: torch.Tensor, img_shape: torch.Tensor) -> torch.Tensor:
    """Return h, w (B, 2) of the images without padding."""
    return torch.where(img_shape > 0, img_shape, hw(image).to(img_shape)[None])


WINDOWS = (1, 2, 4, 8)
"""Divisors of an image's sides: half-overlapping windows replace missing proposals."""


def feeds(images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
    """Return the float32 inputs of pictures of one size by name, in pixels.

    `input` (B, 3, H, W), normalised, `img_shape` (B, 2) h, w before padding, `border` (B, 2) rows of padding
    above and columns left, if any, and with `rescale` `scale_factor` (B, 4) `w h w h`, input / original.
    """
    batch = dict(
        input=np.stack([image.tensor for image in images]),
        img_shape=np.asarray([image.img_shape for image in images], np.float32),
    )
    if any(any(image.border) for image in images):
        batch['border'] = np.asarray([image.border for image in images], np.float32)
    if rescale:
        batch['scale_factor'] = np.stack([image.scale_factor for image in images]).astype(np.float32)
    return batch


def mask_feeds(images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
    """Return `input` and `img_shape` as `feeds`, and `ori_shape` (2,) int64 h, w, pixels."""
    return dict(
        input=np.stack([image.tensor for image in images]),
        img_shape=np.asarray([image.img_shape for image in images], np.float32),
        ori_shape=one_size((tuple(image.ori_shape) for image in images), 'masks'),
    )


def one_size(sizes: Iterable[tuple[int, int]], results: str) -> np.ndarray:
    """Return the one size (2,) int64, h, w, of all images."""
    different = sorted(set(sizes))
    if len(different) > 1:
        raise ShapeError(
            f'ori_shape: the images of a batch have different original sizes, {different}; {results} of a '
            'batch have one size: run the images one by one (samples_per_gpu=1)'
        )
    return np.asarray(different[0], np.int64)


def proposals_of(image: PreparedImage) -> np.ndarray:
    """Return proposals (K, 4) float32 xyxy, pixels of the network input, or windows of several sizes."""
    if image.proposals is not None:
        return image.proposals[:, :4].astype(np.float32)
    windows = []
    for divisor in WINDOWS:
        steps = np.arange(2 * divisor - 1) / (2 * divisor)
        low = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
        windows.append(np.concatenate([low, low + 1 / divisor], 1))
    height, width = image.img_shape
    return (np.concatenate(windows) * [width, height, width, height]).astype(np.float32)


def pasted_size(image: PreparedImage, rescale: bool) -> tuple[int, int]:
    """Return h, w, pixels, of the image that masks are pasted into."""
    if rescale:
        content = np.round(np.divide(image.img_shape, image.scale_factor[1::-1]))
        return tuple(int(side) for side in np.maximum(image.ori_shape, content))
    return tuple(int(side) for side in np.round(np.multiply(image.ori_shape, image.scale_factor[1::-1])))


def feeds_with_sizes(images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
    """Return `feeds`, and `ori_shape` (B, 2) int64, the `pasted_size` of every image."""
    sizes = [pasted_size(image, rescale) for image in images]
    return dict(feeds(images, rescale), ori_shape=np.asarray(sizes, np.int64))


FULL_NAMES = ('dets', 'labels', 'candidates')


class RawNetwork(nn.Module):
    """The layers of the upstream detector; parameters keep their names below `model.`."""

    def __init__(
        self,
        model: nn.Module,
        names: tuple[str, ...],
        outputs: Callable[[nn.Module, torch.Tensor], Sequence[torch.Tensor]],
    ) -> None:
        super().__init__()
        self.model, self.names, self.outputs = model, names, outputs

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs of the head (B, a*columns, h, w)."""
        outputs = self.outputs(self.model, image)
        return tuple(tap(name, tensor) for name, tensor in zip(self.names, outputs, strict=True))


def form_stages(
    network: nn.Module,
    names: tuple[str, ...],
    options: Options,
    *,
    decode: Callable[[], tuple[nn.Module, tuple[str, ...]]],
    full: Callable[[], nn.Module],
    extra_inputs: tuple[str, ...] = (),
) -> list[Stage]:
    chain = [Stage('network', network, ('input',), names)]
    if options.form == 'decode':
        module, outputs = decode()
        chain.append(Stage('decode', module, names, outputs))
    elif options.form == 'full':
        inputs = ('input', 'img_shape', 'scale_factor', *extra_inputs, *names)
        outputs = FULL_NAMES if options.max_candidates else FULL_NAMES[:2]
        chain.append(Stage('postprocess', full(), inputs, outputs))
    return chain


def raw_outputs(
    outputs: Sequence[tuple[str, int]],
    meanings: Mapping[str, tuple[str, str]],
    priors_per_cell: Sequence[int],
    map_sizes: Sequence[tuple[int, int]],
    options: Options,
) -> tuple[TensorSpec, ...]:
    """Return the specs of the form `raw`, by output, then by level.

    `outputs` are (name, columns per prior), `meanings` name -> (meaning, unit); `map_sizes` (h, w) per level
    are not read for dynamic sizes.
    """
    batch, specs = 'B' if options.dynamic else options.batch, []
    for name, columns in outputs:
        meaning, unit = meanings[name]
        for level, count in enumerate(priors_per_cell):
            size = (f'h{level}', f'w{level}') if options.dynamic else map_sizes[level]
            axes = (batch, columns * count, *size)
            specs.append(TensorSpec(f'{name}_{level}', 'float32', axes, f'{meaning}, level {level}', unit))
    return tuple(specs)


def prior_axes(
    priors_per_cell: Sequence[int], map_sizes: Sequence[tuple[int, int]], options: Options
) -> tuple[int | str, int | str]:
    """Return the axes of images and priors of the form `decode`, B and A if dynamic."""
    if options.dynamic:
        return 'B', 'A'
    levels = zip(map_sizes, priors_per_cell, strict=True)
    return options.batch, sum(height * width * count for (height, width), count in levels)
