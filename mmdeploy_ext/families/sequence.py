"""The base class of families of streams and sweeps: models with a memory, and LiDAR models without.

Terms of its methods:

- moment: one sample of a data set: a `Frame` of cameras or a `Sweep` of points (such as a `FusedFrame`, which
  has pictures, too);
- infos: the file of a data set that lists its moments, with poses and calibrations;
- rig: the cameras and the LiDAR of a vehicle, and their calibration;
- rule: what the family's `preprocess_rule` returns, by which samples are prepared;
- contract: which program the files are for, an option of the export (`--contract`);
- stepper: what computes one moment after the other: the reference, which is PyTorch's model, or the runner,
  which is the exported files on an engine.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from mmdeploy_ext.contract.memory import MemorySpec
from mmdeploy_ext.contract.options import DRIVE, Option, Options
from mmdeploy_ext.contract.registry import options_of
from mmdeploy_ext.contract.spec import Graph
from mmdeploy_ext.families.base import Family
from mmdeploy_ext.families.sequence_data import SequenceData
from mmdeploy_ext.families.sequence_reference import SequenceReference
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.frames import Stepper

if TYPE_CHECKING:
    import torch


class SequenceFamily(Family):
    """Export, references and runner of one family whose samples are frames or sweeps.

    Attributes:
        data: makes frames or sweeps of data sets and dumps.
        ignores_places: whether the files give the same results anywhere on the map.
    """

    task = 'bbox3d'
    data: SequenceData
    ignores_places: ClassVar[bool] = False

    @property
    def options(self) -> tuple[Option, ...]:
        """The options that the family was registered with, and those of all families of frames or sweeps."""
        return (*options_of(self.name), *DRIVE)

    @abc.abstractmethod
    def graphs(self, model: torch.nn.Module, options: Options) -> list[Graph]:
        """Return the family's own graphs, in the order in which a frame goes through them."""

    def memory_spec(self, facts: Any) -> MemorySpec:
        """Return the description of the memory, from the facts in a file.

        Families that are proven on a drive have one, which has no tensors if the model remembers none, as
        PETR's. NotImplementedError: the other families.
        """
        raise NotImplementedError(f'{self.name}: has no memory')

    @abc.abstractmethod
    def reference(self, model: torch.nn.Module) -> SequenceReference:
        """Return the unpatched PyTorch model as a stepper."""

    @abc.abstractmethod
    def runner(self, paths: Sequence[str], engine: Mapping[str, Any]) -> Stepper:
        """Return the family's own files on an engine as a stepper.

        `engine` has the arguments of `build_backend` besides the path: `engine`, the backend's name, ONNX
        Runtime's without it, and its options.
        """

    @abc.abstractmethod
    def result(self, detections: Detections3D) -> dict[str, Any]:
        """Return detections as the entry of one sample in the test loop's results."""
