"""Results of the user's own code for frames and sweeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from mmdeploy_ext.runtime.frames import Stepper

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    import torch

    from mmdeploy_ext.runtime.frames import Frame, Sweep


def not_compared(names: Collection[str]) -> list[str]:
    """Return the sentence about results that a reference does not read, or []."""
    return [f'not compared of the results of your test path: {", ".join(sorted(names))}'] if names else []


class SequenceReference(Stepper, Protocol):
    """The user's model of frames or sweeps, unpatched, in its own test path; `rule` of `preprocess_rule`."""

    model: torch.nn.Module
    """The model with its weights."""

    def timed_methods(self) -> dict[str, list[tuple[object, str]]]:
        """Part of a sample -> (owner, method) that computes it, for a benchmark.

        Parts are the keys of the runner's `graph_seconds`; other time counts for a part 'head'.
        """

    def voxel_layer(self) -> tuple[torch.nn.Module, str, int] | None:
        """Return mmcv's `Voxelization`, the coordinate order 'xyz' or 'zyx', and the point width; or None."""

    def special_samples(self, rule: Any, sample: Frame | Sweep) -> Iterable[Frame | Sweep]:
        """Unusual samples, made of another sample.

        For a model with a memory they are one drive, in which poses, motion, times or picture order change at
        the end, after a frame with pictures of one colour.
        """

    def plain_sample(self, rule: Any, sample: Sweep) -> Sweep:
        """A nearly empty sample, such as one point; for models without a memory."""
