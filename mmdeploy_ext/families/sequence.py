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
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mmdeploy_ext.contract.memory import MemorySpec
from mmdeploy_ext.contract.options import DRIVE, Option, Options
from mmdeploy_ext.contract.registry import options_of
from mmdeploy_ext.contract.spec import Graph
from mmdeploy_ext.families.base import Family
from mmdeploy_ext.families.sequence_reference import SequenceReference
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.frames import Frame, Stepper, Sweep

if TYPE_CHECKING:
    from pathlib import Path

    import torch


class SequenceFamily(Family):
    """Export, references and runner of one family whose samples are frames or sweeps.

    Attributes:
        compared: tensors of the graphs that are compared with a dump, by name; empty means the outputs of the
            last graph.
        unread_fields: fields of a `Frame` that the models do not read, and that data sets may lack; no proof
            compares them.
        dump_suffixes: prefix of a dumped tensor's name -> what its file name has before '.bin', as '_pth'.
        dump_names: tensors that dump mode has; empty if they are unknown before a frame has run.
        ignores_places: whether the files give the same results anywhere on the map.
    """

    task = 'bbox3d'
    compared: ClassVar[tuple[str, ...]] = ()
    unread_fields: ClassVar[tuple[str, ...]] = ()
    dump_suffixes: ClassVar[dict[str, str]] = {}
    dump_names: ClassVar[tuple[str, ...]] = ()
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
    def generated_dataset(self, folder: Path, cfg: Any, rule: Any) -> dict[str, Any]:
        """Write generated moments into an existing folder; return the config of a data set that reads them.

        If the class of `data.test` reads files of the kind that is written, or is of the user's code and of
        no other kind, it is that data set with another `ann_file` and `data_root`; else it is the family's
        with the config's test pipeline. Sparse4D's is always that of `data.test`; moments of BEVFusion's own
        repository have a class of their own. `rule`, that of `preprocess_rule`, decides which files are
        written.
        """

    @abc.abstractmethod
    def moments(
        self, cfg: Any, rule: Any, infos: Path, root: str | Path | None = None
    ) -> Iterable[Frame | Sweep]:
        """Yield the moments of infos as the runtime reads and prepares them by a rule.

        Frames of cameras come scene by scene, each in the order of time, sweeps in the order of the infos.
        Their names are the tokens of the infos, of KITTI the index of the picture; of infos without either
        they are numbers or ''. A file is at its path in the infos, or below `root`, the folder of the data
        set (None: not known), or below the folder of the infos. DataError: infos or a file of theirs cannot
        be read, or they lack a calibration.
        """

    def generated_sweeps(self, rule: Any, count: int) -> Iterable[Sweep]:
        """Return `count` sweeps, or `FusedFrame`s, to prove a model on if there is no data set.

        `rule` is that of `preprocess_rule`. NotImplementedError: the family has none, since its models have a
        memory and are proven on a synthetic drive.
        """
        raise NotImplementedError(f'{self.name}: takes no sweeps')

    @abc.abstractmethod
    def frame(self, data: Mapping[str, Any]) -> Frame | Sweep:
        """Return one collated sample of the test loader (batch 1) as a frame; DataError: it lacks a key."""

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

    def dump_tensors(self, model: torch.nn.Module, taps: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """Return what dump mode writes for one frame: name -> array; by default all `taps`.

        These are the tensors that the model passed to `core.taps.tap` in this frame, by name.
        """
        return {name: tensor.detach().cpu().numpy() for name, tensor in taps.items()}

    @abc.abstractmethod
    def dumped_frame(self, tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Frame | Sweep:
        """Return the frame that a dump was made from; DataError: it lacks a tensor that is needed.

        `tensors` are the arrays of the dump by name, `manifest` is the content of its `manifest.json`.
        """
