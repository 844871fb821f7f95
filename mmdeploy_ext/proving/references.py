"""Results of the unpatched model, and images derived from them."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from mmdeploy_ext.base.errors import ConfigError, one_line
from mmdeploy_ext.exporting.substitution import observed
from mmdeploy_ext.families.base import exported_options
from mmdeploy_ext.proving.inputs.inputs import (
    BATCHES,
    plain_inputs,
    proof_inputs,
    with_plain_picture,
    zoomed_input,
)
from mmdeploy_ext.proving.not_shown import Watch
from mmdeploy_ext.proving.recorded.calls import around
from mmdeploy_ext.runtime.detections import Rows, bounding_box
from mmdeploy_ext.runtime.panoptic import OFFSET, Segments

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.families.reference import ImageReference
    from mmdeploy_ext.proving.inputs.inputs import ProofInput
    from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage
    from mmdeploy_ext.spec.metadata import Metadata
    from mmdeploy_ext.spec.options import Options


SURE = 0.5
"""Smallest score of an object, relative to the image's best."""
LARGEST_OBJECT = 0.5
"""Largest share of the image of an object to zoom in on."""


class InputReference:
    """Results of the unpatched model for one input, computed on demand.

    Attributes:
        code: the user's code, see `ImageFamily.reference`.
        images: the input's images; omitted optional inputs get defaults.
        feeds: name -> input of a file, or post-processing fact; forms may need fewer.
        seconds: time of the model's test path.
        sums: `output_sums` of that run.
        watch: thresholds and clips of that run.
        borders: path of a method -> its results, one per call.
        engine_seconds: time of the last file's last run.
    """

    def __init__(self, detector: Detector, proof_input: ProofInput) -> None:
        self.detector, self.input, self.seconds = detector, proof_input, 0.0
        self.code = detector.family.reference(detector.model)
        self.engine_seconds: list[float] = []
        self.watch = Watch()
        self.sums: dict[str, np.ndarray] = {}
        left_out = proof_input.left_out
        self.images = tuple(_as_fed(image, self.code, detector, left_out) for image in proof_input.images)
        feeds = detector.family.feeds(self.images, proof_input.rescale)
        self.feeds = {name: array for name, array in feeds.items() if name not in left_out}
        self._computed: dict[Hashable, Any] = {}
        self.borders: dict[str, list[Any]] = {}

    @functools.cached_property
    def results(self) -> list[Any]:
        model = self.detector.model
        with (
            observed(model, self.code.borders()) as self.borders,
            output_sums(model) as self.sums,
            around(self.detector, self.input.name),
            self.watch,
        ):
            start = time.perf_counter()
            results = self.run()
            self.seconds = time.perf_counter() - start
        return results

    def run(self) -> list[Any]:
        results = self.code.results(self.images, self.input.rescale)
        method = f'{type(self.code).__name__}.results of family {self.detector.family.name!r}'
        if len(results) != len(self.images):
            raise ConfigError(
                f'{method} returned results of {len(results)} images, expected {len(self.images)}'
            )
        foreign_types = [type(entry).__name__ for entry in results if not isinstance(entry, Rows)]
        if foreign_types:
            raise ConfigError(
                f'{method} returned {foreign_types[0]}, expected a Scored of mmdeploy_ext.runtime.detections'
            )
        return results

    def compute(self, method: Callable[..., Any], *arguments: Hashable, **options: Hashable) -> Any:
        """Return the result of a `code` method, cached by arguments."""
        key = method, arguments, tuple(options.items())
        if key not in self._computed:
            self._computed[key] = method(self.feeds, *arguments, **options)
        return self._computed[key]

    def feeds_of(self, metadata: Metadata) -> dict[str, np.ndarray]:
        """Return name -> input of a file."""
        self.feeds |= self.compute(self.code.inner_inputs, metadata.form)
        return {name: self.feeds[name] for name in metadata.spec.input_names if name in self.feeds}

    def forget(self) -> None:
        """Free the cached results and `borders`."""
        self._computed.clear()
        self.borders = {}


@contextlib.contextmanager
def output_sums(model: torch.nn.Module) -> Iterator[dict[str, np.ndarray]]:
    """Collect the sums of absolute values of the results of a model's children, one by one."""
    sums: dict[str, np.ndarray] = {}
    counts: collections.Counter[str] = collections.Counter()

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: Any, outputs: Any) -> None:
            for value in tree_leaves(outputs):
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    counts[name] += 1
                    total = float(value.abs().sum(dtype=torch.float64))
                    sums[f'{name} [{counts[name]}]' if counts[name] > 1 else name] = np.array([total])

        return hook

    hooks = [child.register_forward_hook(hook_of(name)) for name, child in model.named_children()]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()


def options_besides_form(detector: Detector, metadata: Metadata) -> dict[str, Any]:
    options = exported_options(detector.family, metadata.options)
    return {name: value for name, value in options.items() if name != 'form'}


def _as_fed(
    image: PreparedImage, code: ImageReference, detector: Detector, left_out: Sequence[str]
) -> PreparedImage:
    size = code.full_size(image)
    defaults = dict(img_shape=size, ori_shape=size, scale_factor=np.ones(4, np.float32), border=(0, 0))
    values = {name: defaults[name] for name in left_out}
    return dataclasses.replace(image, collected=image.collected or detector.collected, **values)


def references(
    detector: Detector, options: Options, images: Sequence[tuple[str, np.ndarray]]
) -> list[InputReference]:
    inputs = proof_inputs(detector, options, images)
    return [InputReference(detector, proof_input) for proof_input in inputs]


def empty_reference(detector: Detector, options: Options) -> tuple[InputReference | None, str]:
    """Return the reference of a plain image where PyTorch finds nothing, or None and the reason."""
    counts, limit = {}, getattr(detector.family.facts(detector.model), 'max_per_img', None)
    inputs = plain_inputs(detector, options)
    for plain in inputs:
        reference, (title, _) = InputReference(detector, plain), plain.sources[0]
        try:
            counts[title] = sum(map(len, reference.results))
        except Exception as error:  # the user's code may need a candidate, as guided anchors do
            said = one_line(error)[:200]
            return None, f'PyTorch fails on a {title} image ({said}): an empty list was not compared'
        if not counts[title]:
            return reference, ''
        if counts[title] == limit:
            break
    listed = ', '.join(f'{count} in a {title} one' for title, count in counts.items())
    return None, f'PyTorch detects objects in plain images ({listed}): an empty list was not compared'


def reference_with_empty_image(
    detector: Detector, inputs: Sequence[ProofInput], plain: ProofInput
) -> tuple[int, InputReference] | None:
    """Return the index of a batch of three, and its reference with a plain second image, or None."""
    for index, case in enumerate(inputs):
        if len(case.images) != BATCHES[-1] or case.traced:
            continue
        changed = with_plain_picture(detector, case, plain)
        if changed is case:
            continue
        reference = InputReference(detector, changed)
        if not len(reference.results[1]):
            return index, reference
    return None


def zoomed_on_object(detector: Detector, options: Options, traced: InputReference) -> ProofInput | None:
    """Return an input filled by the traced image's largest object, or None."""
    if not any(hasattr(part, 'map_roi_levels') for part in detector.model.modules()):
        return None
    source = traced.input.sources[0]
    height, width = source[1].shape[:2]
    boxes = object_boxes(traced.results[0], traced.input.images[0].img_shape)
    fitting = [box for box in boxes if _area(box) <= LARGEST_OBJECT]
    if not fitting:
        return None
    view = max(fitting, key=_area) * (width, height, width, height)
    return zoomed_input(detector, options, source, view)


def object_boxes(results: Any, size: tuple[int, int]) -> np.ndarray:
    """Return objects' boxes (n, 4) xyxy as shares of the image; `size` is (h, w) in pixels."""
    if isinstance(results, Segments):
        results = results[results.ids >= OFFSET]
    results = results[results.scores >= SURE * results.scores.max(initial=0.0)]
    if hasattr(results, 'masks'):
        size = results.masks.shape[1:]
    boxes = getattr(results, 'bboxes_xyxy', None)
    if boxes is None:
        boxes = np.array([bounding_box(mask) for mask in getattr(results, 'masks', ())]).reshape(-1, 4)
    height, width = size
    return boxes / (width, height, width, height)


def _area(box_xyxy: np.ndarray) -> float:
    return float(np.prod(np.maximum(box_xyxy[2:] - box_xyxy[:2], 0)))
