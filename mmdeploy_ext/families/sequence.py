"""The base class of families of streams and sweeps: models with a memory, and LiDAR models without."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mmdeploy_ext.contract.options import DRIVE, Option, Options
from mmdeploy_ext.contract.registry import options_of
from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.contract.stages import Graph
from mmdeploy_ext.families.base import Family
from mmdeploy_ext.families.memory import MemorySpec
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.frames import Frame, Stepper, Sweep

if TYPE_CHECKING:
    from pathlib import Path

    import torch


class SequenceFamily(Family):
    """Export, references and runner of one family whose samples are frames or sweeps.

    Attributes:
        compared: outputs that are compared with a dump; empty means all of the last graph.
        dump_suffixes: prefix of a dumped tensor's name -> what its file name ends in.
        measured: contracts that a benchmark exports where it is given no files; empty means the default one.
        dump_names: tensors that dump mode has; empty where that is not known before a frame has run.
        bars: what its deploy contract is held to in a benchmark, see `benchmark.streams.held_to`.
        bars_of: the model and machine that the bars were set for.
    """

    compared: ClassVar[tuple[str, ...]] = ()
    measured: ClassVar[tuple[str, ...]] = ()
    dump_suffixes: ClassVar[dict[str, str]] = {}
    dump_names: ClassVar[tuple[str, ...]] = ()
    bars: ClassVar[tuple[tuple[str, str, float], ...]] = ()
    bars_of: ClassVar[str] = ''

    @property
    def options(self) -> tuple[Option, ...]:
        """What the family was registered with, and what every family of frames or sweeps has."""
        return (*options_of(self.name), *DRIVE)

    @abc.abstractmethod
    def graphs(self, model: torch.nn.Module, options: Options) -> list[Graph]:
        """Return the graphs of a contract, in the order in which a frame goes through them."""

    def memory_spec(self, facts: Mapping[str, Any]) -> MemorySpec:
        """What a proof has to know of the memory, of `postprocess_facts` as a file has them."""
        raise NotImplementedError(f'{self.name}: has no memory')

    @abc.abstractmethod
    def generated_dataset(self, folder: Path, cfg: Any, rule: Any) -> dict[str, Any]:
        """Write generated moments as files into a folder; return the config of a data set that reads them.

        It is the one that a config has in `data.test`, where that reads infos of nuScenes' kind, with another
        `ann_file`; else the family's with the config's test pipeline. The rule says what files there are.
        """

    @abc.abstractmethod
    def moments(
        self, cfg: Any, rule: Any, infos: Path, root: str | Path | None = None
    ) -> Iterable[Frame | Sweep]:
        """Yield the moments of infos as the runtime reads and prepares them by a rule; names are tokens.

        `root` is the folder of the data set.
        """

    def generated_sweeps(self, rule: Any, count: int) -> Iterable[Sweep]:
        """Return sweeps to prove a LiDAR model on where there is no data set."""
        raise NotImplementedError(f'{self.name}: takes no sweeps')

    def voxel_layer(self, model: torch.nn.Module) -> tuple[torch.nn.Module, str, int] | None:
        """Return mmcv's `Voxelization` of a model, the order of axes behind it, and the values of a point.

        A proof compares the rule in a file with it; None of a model without voxels.
        """
        return None

    def crowded_sweeps(self, rule: Any, options: Options) -> Iterable[Sweep]:
        """Return sweeps, as points alone, that reach a rule's limits; only the tensors are compared."""
        return ()

    def special_samples(self, rule: Any, sample: Frame | Sweep) -> Iterable[Frame | Sweep]:
        """Yield samples, made of another one, each with one more change of the rig.

        Those of a model with a memory are one drive, with a frame of one colour.
        """
        return ()

    def plain_sample(self, rule: Any, sample: Sweep) -> Sweep | None:
        """Return a sample without a memory in which there is nothing to see; None where none is made."""
        return None

    def ignores_places(self, options: Options) -> bool:
        """Return whether files with these options give the same results anywhere on the map."""
        return False

    def synthetic_outputs(
        self, model: torch.nn.Module, runner: Stepper, spec: GraphSpec
    ) -> Iterable[tuple[str, Mapping[str, np.ndarray]]]:
        """Yield titles and outputs of the last file, of a spec, that reach the limits of what follows it.

        The reference and the runner have a method `boxes_of` that takes them. A file of boxes needs none.
        """
        return ()

    def with_limit(
        self, model: torch.nn.Module, runner: Stepper, found: Detections3D
    ) -> AbstractContextManager[int]:
        """Lower the number of results that a model and its files keep, while the context lasts.

        `found` are results of the reference: the context gives a limit that cuts some of them off; 0 where it
        stays.
        """
        return contextlib.nullcontext(0)

    def other_limits(
        self, model: torch.nn.Module, runner: Stepper, spec: GraphSpec
    ) -> Iterable[tuple[str, AbstractContextManager[Any]]]:
        """Yield titles, and contexts in which a model and its files have other limits of boxes or scores.

        In each of them `synthetic_outputs`, which are those of the model's own limits, are compared again.
        """
        return ()

    def heads_with_other_limits(
        self, model: torch.nn.Module, options: Options, reference: Stepper, sample: Sweep
    ) -> Iterable[tuple[str, Detections3D, Detections3D | Exception]]:
        """Yield titles and results of a head with other limits that are constants of a graph.

        These are PyTorch's, and those of an export with `options`, or the exception that it raised; both are
        of the same map of a sample.
        """
        return ()

    @abc.abstractmethod
    def frame(self, data: Mapping[str, Any]) -> Frame | Sweep:
        """Return one collated sample of the test loader (batch 1) as a frame."""

    @abc.abstractmethod
    def reference(self, model: torch.nn.Module) -> Stepper:
        """Return the unpatched PyTorch model as a stepper."""

    def reference_of(self, model: torch.nn.Module, options: Options) -> Stepper:
        """Return the reference of files with these options; that of all, unless a contract shows more."""
        return self.reference(model)

    def between_files(self, model: torch.nn.Module, options: Options) -> tuple[TensorSpec, ...]:
        """Return what a runner computes between the files of a contract, which the proof compares, too."""
        return ()

    @abc.abstractmethod
    def runner(self, paths: Sequence[str], engine: Mapping[str, Any]) -> Stepper:
        """Return exported files on an engine, by options of `build_backend`, as a stepper."""

    @abc.abstractmethod
    def timed_methods(self, model: torch.nn.Module) -> dict[str, list[tuple[object, str]]]:
        """Return the functions that make up the parts of a sample, for the benchmark: part -> (owner, name).

        Parts have the names of `graph_seconds` of its runner; what no function counts is the head.
        """

    @abc.abstractmethod
    def result(self, detections: Detections3D) -> dict[str, Any]:
        """Return detections as the entry of one sample in the test loop's results."""

    @abc.abstractmethod
    def dump_tensors(self, model: torch.nn.Module, taps: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """Return what dump mode writes for one frame: name -> array."""

    @abc.abstractmethod
    def dumped_frame(self, tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Frame | Sweep:
        """Return the frame that a dump was made from; DataError: it lacks a tensor that is needed."""
