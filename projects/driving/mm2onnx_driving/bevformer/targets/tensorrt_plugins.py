from __future__ import annotations

import functools
from typing import TYPE_CHECKING, ClassVar

from mm2onnx_driving.bevformer.runtime import BevFormerOnnx
from mm2onnx_driving.plugins.kernels import KERNELS
from mmdeploy_ext.engines.plugins import open_with_plugins
from mmdeploy_ext.runtime.bev_motion import motion_since

if TYPE_CHECKING:
    import numpy as np

    from mmdeploy_ext.runtime.frames import Frame

DEPLOYED_NAMES = dict(all_cls_scores='outputs_classes', all_bbox_preds='outputs_coords')
"""Output of the portable graph -> its name in TensorRT deployments."""


class PluginOnnx(BevFormerOnnx):
    """The file with plug-ins in numpy; shift and rotation are in the graph."""

    names: ClassVar[dict[str, str]] = {name: ours for ours, name in DEPLOYED_NAMES.items()}
    build = staticmethod(functools.partial(open_with_plugins, kernels=KERNELS))

    def feeds_of(self, frame: Frame, before: np.ndarray | None) -> dict[str, np.ndarray]:
        motion = motion_since(frame.can_bus, before)
        return dict(image=frame.images[None], lidar2img=frame.lidar2img[None], can_bus=motion)
