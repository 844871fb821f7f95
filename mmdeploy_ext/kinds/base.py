"""The kinds of samples: what the commands do differently for each, and nothing else."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from mmdeploy_ext.detector import Detector
    from mmdeploy_ext.proving.claims import Claims
    from mmdeploy_ext.proving.inputs.samples import Samples
    from mmdeploy_ext.proving.verdict import Verdict


class Kind(abc.ABC):
    """What the commands do with models of one kind of samples; it keeps no state.

    Methods import torch and mmcv themselves.

    Attributes:
        name: 'images', 'sequence' or 'backbone'.
        public_samples: samples of a kit, which may be published, where the user names none.
    """

    name: ClassVar[str]
    public_samples: ClassVar[Sequence[str]] = ()

    @abc.abstractmethod
    def samples(
        self,
        detector: Detector,
        paths: Sequence[str] = (),
        frames: int | None = None,
        option: str = '--images',
        *,
        traced: str | Path = '',
    ) -> Samples:
        """Check the samples of a proof before the weights load.

        Args:
            detector: read, but not built.
            paths: files and folders; (): the package's picture, the config's data set, or generated samples.
            frames: most frames, or sweeps of each of `paths`; None: 12.
            option: the option that named the files, for messages.
            traced: picture before the pictures of `paths`.
        """

    @abc.abstractmethod
    def prove(
        self,
        detector: Detector,
        paths: Sequence[str],
        samples: Collection[Any],
        engine: Mapping[str, Any],
        claims: Claims,
    ) -> Verdict:
        """Prove the files of one export.

        Args:
            detector: the config and checkpoint of the files.
            paths: in the order in which a sample goes through them.
            samples: (title, (h, w, 3) uint8 BGR), the first traced; with a memory the `Frame`s of a drive,
                read once; else `Sweep`s, `FusedFrame`s or `VoxelSet`s.
            engine: `engine`, the name of its class, and its options; {}: ONNX Runtime on the CPU.
            claims: what is claimed of the files.

        Returns:
            The verdict, with the results to draw as `pairs`.
        """
