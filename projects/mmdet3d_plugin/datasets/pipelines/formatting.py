"""The last step before `Collect3D`: arrays to tensors in mmcv's containers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmcv.parallel import DataContainer
from mmdet.datasets.builder import PIPELINES
from mmdet3d.datasets.pipelines import DefaultFormatBundle3D

FLOAT64_KEYS = ('timestamp', 'img_timestamp')  # float32 has steps of 128 s at nuScenes' times


@PIPELINES.register_module()
class PETRFormatBundle3D(DefaultFormatBundle3D):
    """mmdet3d's bundle, plus `collect_keys` as float32 tensors, and times as float64.

    Source: exiawsh/StreamPETR 95f6470, datasets/pipelines/formating.py.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        collect_keys: Sequence[str],
        with_gt: bool = True,
        with_label: bool = True,
    ) -> None:
        super().__init__(class_names, with_gt=with_gt, with_label=with_label)
        self.collect_keys = collect_keys

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Format `results` in place."""
        for key in self.collect_keys:
            dtype = np.float64 if key in FLOAT64_KEYS else np.float32
            results[key] = DataContainer(torch.from_numpy(np.array(results[key], dtype=dtype)))
        return super().__call__(results)
