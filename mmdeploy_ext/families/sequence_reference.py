"""Results of the user's own code for frames and sweeps, for proofs and benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from mmdeploy_ext.runtime.frames import Stepper

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from mmdeploy_ext.runtime.frames import Frame, Sweep


class SequenceReference(Stepper, Protocol):
    """A model of frames or sweeps as the user's config builds it, unpatched, in its own test path.

    `rule` is the result of the family's `preprocess_rule`.
    """

    model: torch.nn.Module
    """The model with its weights."""

    def timed_methods(self) -> dict[str, list[tuple[object, str]]]:
        """Part of a sample -> (owner, name of a method) that computes it, for a benchmark.

        Parts are the keys of the runner's `graph_seconds`; time outside of them counts for a part 'head'.
        """

    def voxel_layer(self) -> tuple[torch.nn.Module, str, int] | None:
        """mmcv's `Voxelization` of the model, the order of coordinates, and the width of a point; or None.

        The order is 'xyz' or 'zyx'. A proof compares the rule in a file with them.
        """

    def special_samples(self, rule: Any, sample: Frame | Sweep) -> Iterable[Frame | Sweep]:
        """Samples, made of another one, that a usual drive or sweep does not have.

        Samples of a model with a memory are one drive; at its end poses, records of motion, times or the
        order of pictures change; in the frame before this end the pictures have a single colour.
        """

    def plain_sample(self, rule: Any, sample: Sweep) -> Sweep:
        """A sample in which there is next to nothing, such as one point; of models without a memory."""
