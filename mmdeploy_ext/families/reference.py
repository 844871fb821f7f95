"""Results of the user's own code for images, for proofs and kits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.runtime.detections import Detections, Instances
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage
from mmdeploy_ext.spec.metadata import Metadata

if TYPE_CHECKING:
    import torch

    from mmdeploy_ext.spec.tensors import TensorSpec


class ImageReference:
    """An image model, run by its own code (`ImageFamily.reference`).

    Families with results other than mmdet's boxes override `results`; every other method refines the
    proof. `feeds` come from `ImageFamily.feeds`; `tensors` are outputs of a file and tensors between its
    stages, by name.

    Attributes:
        model: the user's model, unpatched, with its weights.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def results(self, images: Sequence[PreparedImage], rescale: bool) -> list[Detections] | list[Instances]:
        """Results of each image by the user's own test path.

        With `rescale` 2D boxes are in pixels of the original, else of the network input, without padding
        above and left if the graph has `border`. 3D boxes are in metres.
        """
        from mmdeploy_ext.families.common.mmdet_reference import boxes_of_classes

        return [boxes_of_classes(result) for result in self.tested(images, rescale)]

    def tested(self, images: Sequence[PreparedImage], rescale: bool) -> list[Any]:
        """Results per image of an mmdet detector: `forward` with `return_loss=False`."""
        from mmdeploy_ext.families.common.mmdet_reference import metas_of, tested

        return tested(self.model, images, metas_of(images), rescale)

    def tensors(
        self,
        feeds: Mapping[str, np.ndarray],
        form: str,
        given: Mapping[str, np.ndarray] = {},
        **options: Any,
    ) -> dict[str, np.ndarray]:
        """Expected outputs of a graph without results; uncompared outputs may be missing.

        Stages behind a jump, such as a top-k, start from the file's tensors `given`.
        """
        raise NotImplementedError(f'{type(self).__name__}: has no tensors to compare in the form {form}')

    def inner_inputs(self, feeds: Mapping[str, np.ndarray], form: str) -> dict[str, np.ndarray]:
        """Inputs that another graph computes, e.g. proposals, or {}."""
        return {}

    def file_results(
        self,
        metadata: Metadata,
        outputs: Mapping[str, np.ndarray],
        feeds: Mapping[str, np.ndarray],
        images: Sequence[PreparedImage],
        rescale: bool,
    ) -> list[Detections] | list[Instances] | None:
        """Results of a file by the user's code; None: the runtime makes them."""
        return None

    def results_left_out(self, options: Mapping[str, Any]) -> str:
        """Reason to skip the results of a file with these options, or ''."""
        return ''

    def full_size(self, image: PreparedImage) -> tuple[int, int]:
        """Default height and width of a graph, pixels."""
        return tuple(image.tensor.shape[1:])

    def takes(self, picture: TensorSpec, height: int, width: int) -> bool:
        """Whether a dynamic graph accepts images of this size in pixels (multiples aside)."""
        return min(height, width) >= picture.smallest

    def borders(self) -> dict[str, Callable[[list[Any]], Mapping[str, Any]]]:
        """Path of a model method -> function from its results to the file's names.

        Rows of a top-k are left out: their order differs between engines.
        """
        return {}

    def substitutes(self, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Path of a model method -> its result from a file's tensors, for `substituted`; or {}."""
        return {}

    def unjudged(self) -> str:
        """Tensors of `substitutes` not in `borders`, and the reason; or ''."""
        return ''

    def counts(self, tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Most rows of an image at each inner limit, by its name in the facts, maybe after 'rpn.'."""
        return {}

    def inner_tensors(
        self, tensors: Mapping[str, np.ndarray]
    ) -> tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]:
        """Outputs of the user's modules and of the file on equal inputs; or rows."""
        return {}, {}

    def inner_results(
        self, tensors: Mapping[str, np.ndarray], images: Sequence[PreparedImage]
    ) -> list[tuple[Detections, Detections]]:
        """Boxes between stages, such as proposals, per image: the user's and the file's."""
        return []

    def in_order(self, outputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Outputs with top-k rows ordered independently of scores."""
        return outputs

    def candidate_bounds(
        self, feeds: Mapping[str, np.ndarray], slack: float, **caps: int
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Smallest and largest valid count (B,) per output of candidate counts.

        A score within `slack` of its threshold may pass or not; `caps` are `max_candidates` and
        `max_proposals`.
        """
        raise NotImplementedError(f'{type(self).__name__}: has no files with a limit of candidates')
