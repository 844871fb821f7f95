"""What the unpatched model gives for the inputs of a proof, computed once for any number of files."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.proving.inputs.inputs import BATCHES, plain_inputs, proof_inputs, with_plain_picture
from mmdeploy_ext.proving.near_ties import near_ties

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.contract.options import Options
    from mmdeploy_ext.exporting.deployment import Deployment
    from mmdeploy_ext.preprocess.pictures import PreparedImage
    from mmdeploy_ext.proving.inputs.inputs import ProofInput


class Reference:
    """What the unpatched model gives for one input, each part computed when it is first asked for.

    Attributes:
        deployment: the model.
        input: the input.
        images: its images; those of optional inputs that are left out have the values of the defaults.
        feeds: what a file is fed, by name; more than some forms take.
        seconds: that the test path of the model took.
        engine_seconds: that the runs of the last file took.
    """

    def __init__(self, deployment: Deployment, proof_input: ProofInput) -> None:
        self.deployment, self.input, self.seconds = deployment, proof_input, 0.0
        self.engine_seconds: list[float] = []
        family, left_out = deployment.family, proof_input.left_out
        self.images = tuple(
            _by_default(_collected(image, deployment), left_out, family.whole(image))
            for image in proof_input.images
        )
        feeds = family.feeds(self.images, proof_input.rescale)
        self.feeds = {name: array for name, array in feeds.items() if name not in left_out}
        self._computed: dict[Hashable, Any] = {}
        choices, model = family.rounded_choices(deployment.model), deployment.model
        self._ties = near_ties(model, self._results, family.tie_keys, choices)

    @functools.cached_property
    def results(self) -> list[Any]:
        """Detections or instances per image."""
        start = time.perf_counter()
        found = self._results()
        self.seconds = time.perf_counter() - start
        return found

    @functools.cached_property
    def longer(self) -> list[Any]:
        """The results with a higher limit of their number, to tell ties at the cut."""
        with self.deployment.family.raised_result_limit(self.deployment.model):
            return self._results()

    @property
    def near_ties(self) -> Iterator[list[Any]]:
        """Results with thresholds moved by rounding, other choices of ties, other rounding of layers.

        Each is computed when it is first asked for.
        """
        self._ties, found = itertools.tee(self._ties)
        return found

    def _results(self) -> list[Any]:
        family, model = self.deployment.family, self.deployment.model
        return family.reference_detections(model, self.images, self.input.rescale)

    def compute(self, method: Callable[..., Any], *arguments: Hashable, **options: Hashable) -> Any:
        """Return what a method of the family, such as `reference_tensors`, gives for these feeds.

        It takes the model and the feeds first, and runs once for the same arguments.
        """
        key = method, arguments, tuple(options.items())
        if key not in self._computed:
            self._computed[key] = method(self.deployment.model, self.feeds, *arguments, **options)
        return self._computed[key]

    def feeds_of(self, metadata: Metadata) -> dict[str, np.ndarray]:
        """Return what a file is fed; what it takes of another graph is in `feeds` from then on."""
        self.feeds |= self.compute(self.deployment.family.inner_inputs, metadata.form)
        return {name: self.feeds[name] for name in metadata.spec.input_names if name in self.feeds}

    def forget(self) -> None:
        """Free the tensors, which are large; they are computed again when they are asked for."""
        self._computed.clear()


def _collected(image: PreparedImage, deployment: Deployment) -> PreparedImage:
    """Return an image with what the config's test pipeline collects besides."""
    return dataclasses.replace(image, collected=image.collected or deployment.collected)


def _by_default(image: PreparedImage, left_out: Sequence[str], whole: tuple[int, int]) -> PreparedImage:
    """Return an image with what the contract says of optional inputs that are not fed."""
    known = dict(img_shape=whole, ori_shape=whole, scale_factor=np.ones(4, np.float32), border=(0, 0))
    return dataclasses.replace(image, **{name: known[name] for name in left_out})


def references(
    deployment: Deployment, options: Options, images: Sequence[tuple[str, np.ndarray]]
) -> list[Reference]:
    """Return the references of all inputs of a proof; see `proof_inputs` for the arguments."""
    return [Reference(deployment, one) for one in proof_inputs(deployment, options, images)]


def empty_reference(deployment: Deployment, options: Options) -> tuple[Reference | None, str]:
    """Return what PyTorch gives for a plain picture in which it finds nothing, or None and why there is none.

    A plain picture with results is no input: all its cells look the same, so that rounding decides which of
    them are the best.
    """
    if deployment.family.finds_always(deployment.model):
        return None, 'the model gives results of every picture: an empty list was not compared'
    counts = {}
    for plain in plain_inputs(deployment, options):
        reference, (title, _) = Reference(deployment, plain), plain.sources[0]
        counts[title] = sum(map(len, reference.results))
        if not counts[title]:
            return reference, ''
    found = ', '.join(f'{count} in a {title} one' for title, count in counts.items())
    return None, f'PyTorch finds something in plain pictures ({found}): an empty list was not compared'


def reference_with_empty_image(
    deployment: Deployment, inputs: Sequence[ProofInput], plain: ProofInput
) -> tuple[int, Reference] | None:
    """Return an index of a batch of three and what PyTorch gives for it with a plain picture in the middle.

    Results of a batch are padded to those of its image that has the most, so that an empty list beside others
    is not what it is alone. None if there is no such batch, or PyTorch finds something in the plain picture.
    """
    for index, case in enumerate(inputs):
        if len(case.images) != BATCHES[-1] or case.traced:
            continue
        changed = with_plain_picture(deployment, case, plain)
        if changed is case:
            continue
        reference = Reference(deployment, changed)
        if not len(reference.results[1]):
            return index, reference
    return None
