"""The base classes of families of streams and sweeps, with or without a memory, and of their references."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from mmdeploy_ext.families.base import Family
from mmdeploy_ext.families.sequence_data import SequenceData
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.frames import Stepper
from mmdeploy_ext.spec.memory import MemorySpec
from mmdeploy_ext.spec.options import DRIVE, Option, Options
from mmdeploy_ext.spec.registry import registration_of
from mmdeploy_ext.spec.tensors import Graph

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


class SequenceFamily(Family):
    """A family of models of frames or sweeps.

    Attributes:
        data: frames or sweeps of data sets and dumps.
        ignores_places: whether results are the same anywhere on the map.
        settings: arguments of `OPENS` of its runtime in a proof.
    """

    task = 'bbox3d'
    data: SequenceData
    ignores_places: ClassVar[bool] = False
    settings: ClassVar[Mapping[str, Any]] = {}

    @property
    def options(self) -> tuple[Option, ...]:
        return (*registration_of(self.name).options, *DRIVE)

    @abc.abstractmethod
    def graphs(self, model: torch.nn.Module, options: Options) -> list[Graph]:
        """Return the family's own graphs in the order of their use."""

    def memory_spec(self, facts: Any) -> MemorySpec:
        """Return the memory of a file with these facts; it may lack tensors."""
        return MemorySpec()

    @abc.abstractmethod
    def reference(self, model: torch.nn.Module) -> SequenceReference:
        """Return the unpatched PyTorch model as a stepper."""

    def runner(self, paths: Sequence[str], engine: Mapping[str, Any]) -> Stepper:
        """Return the family's own files as a stepper; `engine` are arguments of `build_backend`."""
        opens = registration_of(self.name).load_runtime().OPENS
        return opens(paths, **self.settings, **engine)

    @abc.abstractmethod
    def result(self, detections: Detections3D) -> dict[str, Any]:
        """Return detections as the entry of one sample in the test loop's results."""
