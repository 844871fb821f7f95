"""Results of the user's own code for pictures, in the terms of a file, for proofs and kits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mmdeploy_ext.contract.metadata import Metadata
from mmdeploy_ext.preprocess.pictures import PreparedImage
from mmdeploy_ext.runtime.detections import Detections, Instances

if TYPE_CHECKING:
    import torch

    from mmdeploy_ext.contract.spec import TensorSpec


class ImageReference:
    """A model of a family of pictures, run by its own code, see `ImageFamily.reference`.

    `results` are the boxes of a detector of mmdet; a family of other results overrides it. Each other method
    lets a proof look closer. `feeds` are the arrays of `ImageFamily.feeds`; `tensors` are the outputs of a
    file and the tensors between its stages, by name.

    Attributes:
        model: the model as the user's config builds it, unpatched, with its weights.
        max_alone_share: largest share of the results of a proof that may lack a partner end to end, if the
            file's own tensors give the file's results one to one, see `tasks/matching.py`.
    """

    max_alone_share: ClassVar[float] = 0.005

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def results(self, images: Sequence[PreparedImage], rescale: bool) -> list[Detections] | list[Instances]:
        """Results of each image by the user's own test path, of the class that the family's runtime gives.

        With `rescale` boxes in a picture are in pixels of the original, else of the network input, without
        padding above and left if the graph takes it as `border`. Boxes in 3D are in metres.
        """
        from mmdeploy_ext.families.parts.mmdet_reference import boxes_of_classes

        return [boxes_of_classes(result) for result in self.tested(images, rescale)]

    def tested(self, images: Sequence[PreparedImage], rescale: bool) -> list[Any]:
        """Results of a detector of mmdet for each image, by `forward` with `return_loss=False`."""
        from mmdeploy_ext.families.parts.mmdet_reference import metas_of, tested

        return tested(self.model, images, metas_of(images), rescale)

    def tensors(self, feeds: Mapping[str, np.ndarray], form: str, **options: Any) -> dict[str, np.ndarray]:
        """Right outputs, by name, of a graph of a form that ends before the results.

        `options` are the file's, but the form. Outputs that are not compared by value may be missing.
        """
        raise NotImplementedError(f'{type(self).__name__}: has no tensors to compare in the form {form}')

    def expected_tensors(
        self,
        feeds: Mapping[str, np.ndarray],
        tensors: Mapping[str, np.ndarray],
        form: str,
        **options: Any,
    ) -> dict[str, np.ndarray] | None:
        """As `tensors`, of stages that begin with the file's tensors, where results jump with rounding.

        None: `tensors` are right.
        """
        return None

    def inner_inputs(self, feeds: Mapping[str, np.ndarray], form: str) -> dict[str, np.ndarray]:
        """Inputs, by name, of a graph of the form that another graph computes, e.g. proposals; or {}."""
        return {}

    def file_results(
        self,
        metadata: Metadata,
        outputs: Mapping[str, np.ndarray],
        feeds: Mapping[str, np.ndarray],
        images: Sequence[PreparedImage],
        rescale: bool,
    ) -> list[Detections] | list[Instances] | None:
        """Results of a file by the user's code, where no runtime goes on; None: the runtime does."""
        return None

    def results_left_out(self, options: Mapping[str, Any]) -> str:
        """Reason to skip the results of a file with these options, or ''."""
        return ''

    def full_size(self, image: PreparedImage) -> tuple[int, int]:
        """Height and width, pixels, that a graph assumes by default."""
        return tuple(image.tensor.shape[1:])

    def takes(self, picture: TensorSpec, height: int, width: int) -> bool:
        """Whether pictures of this size, pixels, are large enough for a dynamic graph with this input.

        That their sides are multiples of `picture.multiple` is not asked here.
        """
        return min(height, width) >= picture.smallest

    def borders(self) -> dict[str, Callable[[list[Any]], Mapping[str, Any]]]:
        """Path of a method of the model -> function from its results to names of the file.

        Rows that a top-k chose are left out: engines may have them in another order.
        """
        return {}

    def substitutes(self, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Path of a method of the model -> its result by the tensors of a file; {}: not possible.

        For the values see `exporting.substitution.substituted`.
        """
        return {}

    def unjudged(self) -> str:
        """Which tensors of `substitutes` are not among `borders`, and why; or ''."""
        return ''

    def ranking(self, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """As `substitutes`, to make the model rank its queries as the file did; {}: no ranking.

        Rounding exchanges the ranks of nearly equal scores, which moves all results.
        """
        return {}

    def counts(self, tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Most rows of any image that an inner limit limits, by its name in the facts, or 'rpn.' and that."""
        return {}

    def inner_tensors(
        self, tensors: Mapping[str, np.ndarray]
    ) -> tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]:
        """Outputs of the user's modules for inputs that the file has, and the file's outputs; or rows."""
        return {}, {}

    def inner_results(
        self, tensors: Mapping[str, np.ndarray], images: Sequence[PreparedImage]
    ) -> list[tuple[Detections, Detections]]:
        """Boxes between stages, such as proposals, of each image: of the user's code, and of the file."""
        return []

    def in_order(self, outputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Outputs with rows of a top-k, in an order that does not depend on scores."""
        return outputs

    def candidate_bounds(
        self, feeds: Mapping[str, np.ndarray], slack: float, **caps: int
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Smallest and largest right value (B,) of each output that counts candidates.

        A score within `slack` of its threshold may pass or not; `caps` are the file's limits by option,
        `max_candidates` and `max_proposals`.
        """
        raise NotImplementedError(f'{type(self).__name__}: has no files with a limit of candidates')
