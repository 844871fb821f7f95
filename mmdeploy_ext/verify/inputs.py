"""The inputs of a proof: the traced one, other pictures, other sizes, other batches."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext import deploy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.deploy import Deployment
    from mmdeploy_ext.family import ExportOptions
    from mmdeploy_ext.preprocess import PreparedImage, PreprocessRule


@dataclasses.dataclass(frozen=True)
class ProofInput:
    """One input of the proof.

    Attributes:
        name: what it is, for the table.
        images: prepared images of one size, one per batch entry.
        sources: the images before normalising, as the network sees them, and their titles.
        traced: whether the exporter saw exactly this.
        rescale: feed `scale_factor` too, so that boxes are in pixels of the original. The first other image
            does: width and height of a square input would tell nothing of their order.
    """

    name: str
    images: tuple[PreparedImage, ...]
    sources: tuple[tuple[str, np.ndarray], ...]
    traced: bool = False
    rescale: bool = False


def other_view(image_bgr: np.ndarray) -> np.ndarray:
    """Return a picture that no trace has seen: mirrored and darkened."""
    return np.ascontiguousarray((image_bgr[:, ::-1] * 0.8).astype(np.uint8))


def cut(image_bgr: np.ndarray) -> np.ndarray:
    """Return the upper left of a picture: of another size and another ratio of its sides."""
    height, width = image_bgr.shape[:2]
    return np.ascontiguousarray(image_bgr[: max(height * 7 // 8, 1), : max(width * 3 // 4, 1)])


def told(title: str, change: str) -> str:
    """Return the title of a changed picture: 'toy.jpg (mirrored, cut)'."""
    return f'{title[:-1]}, {change})' if title.endswith(')') else f'{title} ({change})'


def proof_inputs(
    deployment: Deployment, options: ExportOptions, images: Sequence[tuple[str, np.ndarray]]
) -> list[ProofInput]:
    """Return the inputs of a proof: the traced one, others, and for dynamic graphs other sizes and batches.

    Args:
        deployment: the model.
        options: the graph's.
        images: (title, BGR picture); the first is the traced one. A mirrored one is added when it is alone.
            Where all have one size the second is cut: a graph that knows only that size would pass.
    """
    if len(images) == 1:
        images = [*images, (f'{images[0][0]} (mirrored)', other_view(images[0][1]))]
    if len({picture.shape for _, picture in images}) == 1:
        title, picture = images[1]
        images = [images[0], (told(title, 'cut'), cut(picture)), *images[2:]]
    height, width = options.height, options.width
    fixed = functools.partial(_fixed, deployment)
    batch = [images[index % len(images)] for index in range(options.batch)]
    cases = [fixed('traced input', [images[0]] * options.batch, (height, width), traced=True)]
    if options.batch > 1:
        cases.append(fixed(f'batch of {options.batch} images', batch, (height, width), rescale=True))
    cases += [
        fixed('other image', [image] * options.batch, (height, width), rescale=not index % 2)
        for index, image in enumerate(images[1:])
    ]
    if options.dynamic:
        cases.append(_other_size(deployment, options, images[1]))
        larger = (_aligned(height * 1.25), _aligned(width * 1.125))
        cases.append(fixed('other size, batch 2', [images[1], images[0]], larger, rescale=True))
    if options.dynamic_batch:
        other = [images[index % len(images)] for index in range(1, options.batch + 2)]
        cases.append(fixed(f'batch of {len(other)}', other, (height, width), rescale=True))
    return cases


def _fixed(
    deployment: Deployment,
    name: str,
    chosen: Sequence[tuple[str, np.ndarray]],
    size: tuple[int, int],
    **flags: bool,
) -> ProofInput:
    """Return pictures as one batch of a size, in which neighbours differ in their sizes.

    Otherwise a graph that takes the sizes of the first image for all would give the same results.
    """
    rule, batches = deployment.rule, deployment.family.batches

    def prepare(pictures: Sequence[tuple[str, np.ndarray]]) -> tuple[PreparedImage, ...]:
        return tuple(deploy.prepare_fixed(rule, picture, *size) for _, picture in pictures)

    prepared = prepare(chosen)
    if len(batches(prepared)) > 1:  # these cannot go together: views of the first can
        title, picture = chosen[0]
        views = (chosen[0], (told(title, 'mirrored'), other_view(picture)))
        chosen = [views[index % 2] for index in range(len(chosen))]
        prepared = prepare(chosen)
    if not flags.get('traced') and len({picture.shape for _, picture in chosen}) == 1 < len(chosen):
        varied = [
            (told(title, 'cut'), cut(picture)) if index % 2 else (title, picture)
            for index, (title, picture) in enumerate(chosen)
        ]
        if len(batches(prepare(varied))) == 1:
            chosen, prepared = varied, prepare(varied)
        else:  # masks of one batch have one size: the content of the input is smaller
            prepared = tuple(
                _smaller(rule, picture, size) if index % 2 else prepared[index]
                for index, (_, picture) in enumerate(chosen)
            )
    return ProofInput(name, prepared, tuple(chosen), **flags)


def _smaller(rule: PreprocessRule, image_bgr: np.ndarray, size: tuple[int, int]) -> PreparedImage:
    """Return an image whose content takes 7/8 of the input's height and 3/4 of its width at most."""
    inner = max(size[0] * 7 // 8, 1), max(size[1] * 3 // 4, 1)
    small = dataclasses.replace(rule, size=inner).apply(image_bgr)
    tensor = np.empty((len(small.tensor), *size), np.float32)
    tensor[:] = np.float32(rule.pad_val)[:, None, None]
    tensor[:, : inner[0], : inner[1]] = small.tensor
    return dataclasses.replace(small, tensor=tensor)


def _aligned(size: float, multiple: int = 32) -> int:
    return max(int(size) // multiple, 1) * multiple


def _other_size(deployment: Deployment, options: ExportOptions, image: tuple[str, np.ndarray]) -> ProofInput:
    """Return an image of a smaller size, or of a larger one where the model does not take the smaller."""
    height, width = options.height, options.width
    case = _unaligned(deployment, image, (int(height * 0.75) - 7, int(width * 0.75) + 5))
    if deployment.family.takes(deployment.model, options, *case.images[0].tensor.shape[1:]):
        return case
    return _unaligned(deployment, image, (int(height * 1.75) - 7, int(width * 1.5) + 5))


def _unaligned(deployment: Deployment, image: tuple[str, np.ndarray], size: tuple[int, int]) -> ProofInput:
    """Stretch an image to a size that is no multiple of 32, then pad it to one; the name says which."""
    rule = dataclasses.replace(
        deployment.rule,
        size=None,
        keep_ratio=False,
        size_divisor=32,
        img_scale=(max(size[1], 32), max(size[0], 32)),
    )
    prepared = rule.apply(image[1])
    height, width = prepared.img_shape
    padded = (height, width) != prepared.tensor.shape[1:]
    name = f'other size, padded from {height}x{width}' if padded else 'other size'
    return ProofInput(name, (prepared,), (image,))
