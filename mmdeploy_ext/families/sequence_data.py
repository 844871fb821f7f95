"""Frames or sweeps of a family from data sets, from dumps, or generated."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch

    from mmdeploy_ext.runtime.frames import Frame, Sweep


class SequenceData(abc.ABC):
    """The samples of a family of frames or sweeps.

    Attributes:
        compared: tensors of the graphs that are compared with a dump, by name; empty means the outputs of the
            last graph.
        unread_fields: fields of a `Frame` that the models do not read, and that data sets may lack; no proof
            compares them.
        dump_suffixes: prefix of a dumped tensor's name -> suffix of its file name before '.bin', as '_pth'.
        dump_names: tensors that dump mode has; empty if they are unknown before a frame has run.
    """

    compared: ClassVar[tuple[str, ...]] = ()
    unread_fields: tuple[str, ...] = ()
    dump_suffixes: ClassVar[dict[str, str]] = {}
    dump_names: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def frame(self, data: Mapping[str, Any]) -> Frame | Sweep:
        """Return one collated sample of the test loader (batch 1) as a frame; DataError: it lacks a key."""

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

    @abc.abstractmethod
    def generated_dataset(self, folder: Path, cfg: Any, rule: Any) -> dict[str, Any]:
        """Write generated moments into an existing folder; return the config of a data set that reads them.

        If the class of `data.test` reads files of the kind that is written, or is of the user's code and of
        no other kind, it is that data set with another `ann_file` and `data_root`; else it is the family's
        with the config's test pipeline. Sparse4D's is always `data.test`; moments of BEVFusion's own
        repository have a class of their own. `rule` (of `preprocess_rule`) decides which files are written.
        """

    def generated_sweeps(self, rule: Any, count: int) -> Iterable[Sweep]:
        """Return `count` sweeps, or `FusedFrame`s, to prove a model on if there is no data set.

        `rule` is the result of `preprocess_rule`. NotImplementedError: the family has none, since its models
        have a memory and are proven on a synthetic drive.
        """
        raise NotImplementedError(f'{type(self).__name__}: takes no sweeps')

    @abc.abstractmethod
    def dumped_frame(self, tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Frame | Sweep:
        """Return the frame that a dump was made from; DataError: it lacks a tensor that is needed.

        `tensors` are the arrays of the dump by name, `manifest` is the content of its `manifest.json`.
        """

    def dump_tensors(self, model: torch.nn.Module, taps: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """Return the tensors of a frame for a dump: name -> array; by default all `taps`.

        These are the tensors that the model passed to `core.taps.tap` in this frame, by name.
        """
        return {name: tensor.detach().cpu().numpy() for name, tensor in taps.items()}
