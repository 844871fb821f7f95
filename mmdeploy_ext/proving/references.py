"""Results of the unpatched model for the pictures of a proof, computed once for any number of files."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from mmdeploy_ext.contract.spec import DEFAULT_RTOL
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.exporting.substitution import observed
from mmdeploy_ext.proving.inputs.inputs import (
    BATCHES,
    plain_inputs,
    proof_inputs,
    with_plain_picture,
    zoomed_input,
)
from mmdeploy_ext.runtime.detections import Rows, bounding_box
from mmdeploy_ext.runtime.panoptic import OFFSET, Segments

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.contract.options import Options
    from mmdeploy_ext.families.model import Model
    from mmdeploy_ext.preprocess.pictures import PreparedImage
    from mmdeploy_ext.proving.inputs.inputs import ProofInput


SURE = 0.5
"""Smallest score of a result that counts as an object, as a share of the picture's best score."""
LARGEST_OBJECT = 0.5
"""Largest share of a picture that an object fills which is zoomed."""


class ImageReference:
    """Results of the unpatched model for one input, each part computed when it is first needed.

    Attributes:
        deployment: the model.
        input: the input.
        images: its images; if optional inputs are left out, the values of these are the defaults.
        feeds: name -> input of a file, or fact for the post-processing; more than some forms need.
        seconds: how long the model's test path took; 0.0 before it ran.
        sums: `output_sums` of that run.
        borders: path of a method -> what it returned in that run, one for each call; see `Family.borders`.
        engine_seconds: how long each run of the last file took.
    """

    def __init__(self, deployment: Model, proof_input: ProofInput) -> None:
        self.deployment, self.input, self.seconds = deployment, proof_input, 0.0
        self.engine_seconds: list[float] = []
        self.sums: dict[str, list[float]] = {}
        self.images = tuple(_as_fed(image, deployment, proof_input.left_out) for image in proof_input.images)
        family = deployment.family
        feeds = family.feeds(self.images, proof_input.rescale)
        self.feeds = {name: array for name, array in feeds.items() if name not in proof_input.left_out}
        self._computed: dict[Hashable, Any] = {}
        self.borders: dict[str, list[Any]] = {}

    @functools.cached_property
    def results(self) -> list[Any]:
        """The results per image, as `ImageFamily.reference_detections` returns them.

        ConfigError: they are results of another number of images, or of a type without scores.
        """
        family, model = self.deployment.family, self.deployment.model
        with observed(model, family.borders(model)) as self.borders, output_sums(model) as self.sums:
            start = time.perf_counter()
            results = self.run()
            self.seconds = time.perf_counter() - start
        return results

    def run(self) -> list[Any]:
        """Run the user's test path, and return what `results` keeps."""
        family, model = self.deployment.family, self.deployment.model
        results = family.reference_detections(model, self.images, self.input.rescale)
        method = f'reference_detections of family {family.name!r}'
        if len(results) != len(self.images):
            raise ConfigError(f'{method} gave results of {len(results)} images, expected {len(self.images)}')
        foreign_types = [type(entry).__name__ for entry in results if not isinstance(entry, Rows)]
        if foreign_types:
            raise ConfigError(
                f'{method} gave {foreign_types[0]}, no Scored of mmdeploy_ext.runtime.detections'
            )
        return results

    def compute(self, method: Callable[..., Any], *arguments: Hashable, **options: Hashable) -> Any:
        """Return the result of a method of the family, such as `reference_tensors`, for these feeds.

        `method(model, feeds, *arguments, **options)` runs once for equal arguments.
        """
        key = method, arguments, tuple(options.items())
        if key not in self._computed:
            self._computed[key] = method(self.deployment.model, self.feeds, *arguments, **options)
        return self._computed[key]

    def feeds_of(self, metadata: Metadata) -> dict[str, np.ndarray]:
        """Return name -> input of a file, but for optional inputs that are not fed.

        These are those that the input leaves out, and `scale_factor` without `ProofInput.rescale`. Inputs
        that another graph computes are added to `feeds`.
        """
        self.feeds |= self.compute(self.deployment.family.inner_inputs, metadata.form)
        return {name: self.feeds[name] for name in metadata.spec.input_names if name in self.feeds}

    def forget(self) -> None:
        """Free what `compute` gave, which is large, and is computed again when needed; and `borders`."""
        self._computed.clear()
        self.borders = {}


@contextlib.contextmanager
def output_sums(model: torch.nn.Module) -> Iterator[dict[str, list[float]]]:
    """Collect, for each child of a model, the sums of the absolute values of the tensors that it returns.

    What is behind a child may hide that it changes: a normalisation removes any factor.
    """
    sums: dict[str, list[float]] = {name: [] for name, _ in model.named_children()}

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: Any, outputs: Any) -> None:
            for value in tree_leaves(outputs):
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    sums[name].append(float(value.abs().sum(dtype=torch.float64)))

        return hook

    hooks = [child.register_forward_hook(hook_of(name)) for name, child in model.named_children()]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()


def changed_children(first: dict[str, list[float]], again: dict[str, list[float]]) -> list[str]:
    """Return the names of the children whose `output_sums` differ between two runs of one input.

    There are none if one of the runs called no child, such as that of a model in another process.
    """
    if not any(first.values()) or not any(again.values()):
        return []
    names = []
    for name, sums in first.items():
        is_near = len(sums) == len(again[name]) and np.allclose(sums, again[name], DEFAULT_RTOL, 0, True)
        if not is_near:
            names.append(name)
    return names


def options_besides_form(deployment: Model, metadata: Metadata) -> dict[str, Any]:
    """Return the options of a file's export as keyword arguments of `ImageFamily.reference_tensors`.

    That method takes the form, which is left out here, as an argument of its own.
    """
    options = deployment.family.exported_options(metadata.options)
    return {name: value for name, value in options.items() if name != 'form'}


def _as_fed(image: PreparedImage, deployment: Model, left_out: Sequence[str]) -> PreparedImage:
    """Return an image with all values that the config's test pipeline collects.

    Optional inputs in `left_out` have the defaults of the contract.
    """
    size = deployment.family.full_size(image)
    defaults = dict(img_shape=size, ori_shape=size, scale_factor=np.ones(4, np.float32), border=(0, 0))
    values = {name: defaults[name] for name in left_out}
    return dataclasses.replace(image, collected=image.collected or deployment.collected, **values)


def references(
    deployment: Model, options: Options, images: Sequence[tuple[str, np.ndarray]]
) -> list[ImageReference]:
    """Return the references of the inputs that `proof_inputs` makes.

    `options` are those of the export; `images` are titles and pictures (H, W, 3) uint8 BGR, of which it
    makes them.
    """
    inputs = proof_inputs(deployment, options, images)
    return [ImageReference(deployment, proof_input) for proof_input in inputs]


def empty_reference(deployment: Model, options: Options) -> tuple[ImageReference | None, str]:
    """Return the reference of a plain picture in which PyTorch finds nothing, and '', or None and the reason.

    A plain picture with results is not used: all its cells have equal scores, so that rounding decides which
    of them are the best. One that is full of results ends the search: the model has the best of any picture.
    """
    counts, limit = {}, deployment.family.facts(deployment.model).get('max_per_img')
    inputs = plain_inputs(deployment, options)
    for plain in inputs:
        reference, (title, _) = ImageReference(deployment, plain), plain.sources[0]
        counts[title] = sum(map(len, reference.results))
        if not counts[title]:
            return reference, ''
        if counts[title] == limit:
            break
    listed = ', '.join(f'{count} in a {title} one' for title, count in counts.items())
    return None, f'PyTorch finds something in plain pictures ({listed}): an empty list was not compared'


def reference_with_empty_image(
    deployment: Model, inputs: Sequence[ProofInput], plain: ProofInput
) -> tuple[int, ImageReference] | None:
    """Return the index of a batch of three, and its reference with a plain picture in the middle.

    Results of a batch are padded to the number of the image with the most, so that an empty list is padding
    only. None if there is no such batch, apart from the traced one, if no run takes these pictures together,
    or if PyTorch finds something in the plain picture.

    Args:
        deployment: config and checkpoint.
        inputs: all inputs of the proof.
        plain: an input with a plain picture.
    """
    for index, case in enumerate(inputs):
        if len(case.images) != BATCHES[-1] or case.traced:
            continue
        changed = with_plain_picture(deployment, case, plain)
        if changed is case:
            continue
        reference = ImageReference(deployment, changed)
        if not len(reference.results[1]):
            return index, reference
    return None


def zoomed_on_object(deployment: Model, options: Options, traced: ImageReference) -> ProofInput | None:
    """Return the part of the traced picture in the box of its largest object, as an input that it fills.

    None if no size of a region chooses its level of a pyramid, the last of which small objects never reach,
    or if PyTorch finds no object in the traced picture, or only such as fill more than `LARGEST_OBJECT`.
    """
    if not any(hasattr(part, 'map_roi_levels') for part in deployment.model.modules()):
        return None
    source = traced.input.sources[0]
    height, width = source[1].shape[:2]
    boxes = object_boxes(traced.results[0], traced.input.images[0].img_shape)
    fitting = [box for box in boxes if _area(box) <= LARGEST_OBJECT]
    if not fitting:
        return None
    view = max(fitting, key=_area) * (width, height, width, height)
    return zoomed_input(deployment, options, source, view)


def object_boxes(results: Any, size: tuple[int, int]) -> np.ndarray:
    """Return the boxes (n, 4) xyxy of the results that are objects, as shares of the picture.

    Boxes that a detector does not clip may reach beyond 0..1. Objects are no stuff, and have at least `SURE`
    of the best score, to which that of stuff does not count.

    Args:
        results: the results of one image, as `match_detections` of the task takes them.
        size: (h, w) in whose pixels the boxes of results are; if there are masks, that of the masks is used.
    """
    if isinstance(results, Segments):
        results = results[results.ids >= OFFSET]
    results = results[results.scores >= SURE * results.scores.max(initial=0.0)]
    if hasattr(results, 'masks'):
        size = results.masks.shape[1:]
    boxes = getattr(results, 'bboxes_xyxy', None)
    if boxes is None:
        boxes = np.array([bounding_box(mask) for mask in results.masks]).reshape(-1, 4)
    height, width = size
    return boxes / (width, height, width, height)


def _area(box_xyxy: np.ndarray) -> float:
    """Return the area of a box."""
    return float(np.prod(np.maximum(box_xyxy[2:] - box_xyxy[:2], 0)))
