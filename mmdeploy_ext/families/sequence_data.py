"""Frames or sweeps of a family: from data sets, from dumps, or generated."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from torch.utils.data import Dataset

    from mmdeploy_ext.runtime.frames import Frame, Sweep


class SequenceData(abc.ABC):
    """The samples of a family of frames or sweeps.

    Attributes:
        compared: graph tensors that are compared with a dump; empty: outputs of the last graph.
        unread_fields: unused fields of a `Frame`, which data sets may lack.
        dump_suffixes: prefix of a dumped tensor's name -> suffix of its file name before '.bin', as '_pth'.
        dump_names: tensors of dump mode; empty if unknown before a frame has run.
    """

    compared: ClassVar[tuple[str, ...]] = ()
    unread_fields: tuple[str, ...] = ()
    dump_suffixes: ClassVar[dict[str, str]] = {}
    dump_names: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def frame(self, data: Mapping[str, Any]) -> Frame | Sweep:
        """Return a collated sample of the test loader (batch 1); raises DataError if a key is missing."""

    @abc.abstractmethod
    def moments(
        self, cfg: Any, rule: Any, infos: Path, root: str | Path | None = None
    ) -> Iterable[Frame | Sweep]:
        """Yield the moments of infos as the runtime reads and prepares them by a rule.

        Frames come scene by scene in the order of time, sweeps in the order of the infos. Names are tokens,
        KITTI's picture index, numbers or ''. A file is at its path in the infos, below `root`, or below the
        folder of the infos. Raises DataError if infos or a file cannot be read, or lack a calibration.
        """

    @abc.abstractmethod
    def generated_dataset(self, folder: Path, cfg: Any, rule: Any) -> dict[str, Any]:
        """Write generated moments into a folder; return the config of a data set that reads them.

        It is `data.test` with another `ann_file` and `data_root` if its class can read the files, else the
        family's data set with the config's test pipeline. `rule` decides which files are written.
        """

    def generated_sweeps(self, rule: Any, count: int) -> Iterable[Sweep]:
        """Return `count` sweeps, or `FusedFrame`s, to prove a model on without a data set.

        Raises NotImplementedError for models with a memory, which are proven on a synthetic drive.
        """
        raise NotImplementedError(f'{type(self).__name__}: does not use sweeps')

    @abc.abstractmethod
    def dumped_frame(self, tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Frame | Sweep:
        """Return the frame of a dump and its `manifest.json`; raises DataError if a tensor is missing."""

    def dump_tensors(self, model: torch.nn.Module, taps: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """Return the tensors of a frame for a dump; by default all `taps` (`base.taps.tap`)."""
        return {name: tensor.detach().cpu().numpy() for name, tensor in taps.items()}


def scene_tokens(dataset: Dataset, required: bool = True) -> list[str]:
    """Scene token per sample of mmdet3d's nuScenes data set.

    Without tokens in the infos all are ''; DataError if `required`.
    """
    infos = getattr(dataset, 'data_infos', [])
    if not infos or not all('scene_token' in info for info in infos):
        if not required:
            return [''] * len(dataset)
        raise DataError(
            f'{getattr(dataset, "ann_file", "the data set")}: its infos have no scene_token, so the order '
            f'of frames is unknown; make the info file with {tool("synthetic infos")}'
        )
    return [str(info['scene_token']) for info in infos]
