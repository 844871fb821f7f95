"""Contracts of the inputs and outputs of graphs of images that several families have.

Glossary: B batch, H, W network input in pixels, n detections of the image that has most, or a
constant of the file.
"""

from collections.abc import Callable

import torch

from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import TensorSpec
from mmdeploy_ext.exporting.postprocess.suppression import capped, hw


def image_input(
    options: Options, smallest: int, multiple: int, padded: str = 'bottom and right'
) -> TensorSpec:
    """Return `input` (B, 3, H, W); a dynamic file takes any batch, and the sizes that the arguments allow.

    Args:
        options: options of the export.
        smallest: least height and width, pixels.
        multiple: number of which height and width have to be multiples; 1 allows all.
        padded: on which sides of images padding is, for the description.
    """
    size = ('B', 3, 'H', 'W') if options.dynamic else (options.batch, 3, options.height, options.width)
    meaning = f'normalised images, padded {padded}'
    return TensorSpec('input', 'float32', size, meaning, smallest=smallest, multiple=multiple)


def optional_inputs(batch: int | str, clips: bool, bordered: bool = False) -> tuple[TensorSpec, ...]:
    """Return `img_shape`, which no operator uses unless boxes are clipped (`clips`), and `scale_factor`.

    With `bordered` also `border`: boxes lose the padding. `batch` is a number, or 'B' if it is dynamic.
    """
    size = 'height and width before padding, which boxes are clipped to; 0 means the input size'
    ratios = 'w h w h ratios, input / original; boxes are divided by it'
    padding = 'rows of padding above the image and columns left of it, which boxes lose'
    inputs = (
        TensorSpec('img_shape', 'float32', (batch, 2), size, 'pixel', default=0.0, unused=not clips),
        TensorSpec('scale_factor', 'float32', (batch, 4), ratios, default=1.0),
        TensorSpec('border', 'float32', (batch, 2), padding, 'pixel', default=0.0),
    )
    return inputs if bordered else inputs[:2]


def box_outputs(batch: int | str, rows: int | str) -> tuple[TensorSpec, ...]:
    """Return `dets` and `labels` of a `full` graph.

    `batch` and `rows`, results per image, are numbers, or letters if they are dynamic.
    """
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
    """Return the outputs of a `full` graph whose options may limit the candidates that enter a suppression.

    Args:
        results: returns the outputs of the results, given the size or the letter of the axes of images and
            of results per image, as `box_outputs` does.
        options: of the export.
        limits: of the head, on candidates or results of an image; those of 0 or below limit nothing.
        pairs: what is paired with a class to be a candidate.

    Returns:
        The outputs of `results`; with `--max-candidates` the number of results of an image is constant, the
        smallest of that option and `limits`, and `candidates` has the number of candidates of each image
        before the option cuts some off: of dense heads those that `nms_pre` leaves, of SOLO's all.
    """
    batch, cap = 'B' if options.dynamic else options.batch, options.max_candidates
    if not cap:
        return results(batch, 'n')
    meaning = f'({pairs}, class) pairs over the score threshold; more than {cap}: the rest was cut off'
    candidates = TensorSpec('candidates', 'int64', (batch,), meaning, compare='detections')
    return (*results(batch, capped(cap, *limits)), candidates)


PROPOSALS = 'proposals'
"""Name of the tensor and of the list of boxes that results are made from."""

Axis = int | str
"""The size of an axis, or the letter of a dynamic one."""


def mask_inputs(
    batch: Axis, zero: str = '0 means those of the input, up to a multiple of 8'
) -> tuple[TensorSpec, ...]:
    """Return `img_shape` and `ori_shape`; `zero` is the meaning of a size of 0.

    `batch` is a number, or 'B' if it is dynamic.
    """
    content = f'height and width before padding, which masks are cropped to; {zero}'
    original = f'height and width of the original images, which masks are resized to; {zero}'
    return (
        TensorSpec('img_shape', 'float32', (batch, 2), content, 'pixel', default=0.0),
        TensorSpec('ori_shape', 'int64', (2,), original, 'pixel', default=0),
    )


def mask_outputs(batch: Axis, rows: Axis) -> tuple[TensorSpec, ...]:
    """Return `masks`, `scores` and `labels` of a `full` graph; for `batch` and `rows` see `box_outputs`."""
    pixels, order = 'pixels of the instances at ori_shape', 'in descending order; padded with zeros'
    labels = 'class indices; -1 where a row is padding'
    return (
        TensorSpec('masks', 'bool', (batch, rows, 'h', 'w'), pixels, compare='detections'),
        TensorSpec('scores', 'float32', (batch, rows), order, compare='detections'),
        TensorSpec('labels', 'int64', (batch, rows), labels, compare='detections'),
    )


def clip_size(image: torch.Tensor, img_shape: torch.Tensor) -> torch.Tensor:
    """Return height and width (B, 2) of the images without padding, to which boxes are clipped.

    `img_shape` is that; 0 means the size of `image`, the input.
    """
    return torch.where(img_shape > 0, img_shape, hw(image).to(img_shape)[None])
