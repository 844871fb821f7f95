"""Sparse4D's detector at test time: pictures to feature maps, and a head with a memory.

Source of names and algorithm: HorizonRobotics/Sparse4D c41df4b, models/sparse4d.py.
"""

from typing import Any

from mmcv.cnn.bricks.registry import PLUGIN_LAYERS
from mmcv.runner.base_module import BaseModule
from mmcv.utils import build_from_cfg
from mmdet.models import DETECTORS, build_backbone, build_head, build_neck
from torch import Tensor

from mm2onnx_driving.layers.sparse_instances.aggregation import Features, flatten_maps
from mmdeploy_ext.base.errors import ConfigError, DataError
from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.upstream.models.catalogue import registered_if_named


@registered_if_named(DETECTORS)
class Sparse4D(BaseModule):
    """Camera-only detector and tracker that runs a drive frame by frame."""

    def __init__(
        self,
        img_backbone: dict,
        head: dict,
        img_neck: dict,
        use_deformable_func: bool = False,
        depth_branch: dict | None = None,
        init_cfg: dict | None = None,
        **training: Any,
    ) -> None:
        super().__init__(init_cfg)
        if not use_deformable_func:
            raise ConfigError(
                'Sparse4D: use_deformable_func=False gives other results at image borders than the '
                'trained weights expect; expected True'
            )
        self.img_backbone, self.img_neck = build_backbone(img_backbone), build_neck(img_neck)
        self.head = build_head(head)
        self.depth_branch = depth_branch and build_from_cfg(depth_branch, PLUGIN_LAYERS)

    def extract_feat(self, img: Tensor) -> Features:
        """Return the feature maps of pictures (1, N, 3, H, W)."""
        return flatten_maps(self.img_neck(self.img_backbone(img[0])))

    def forward(self, img: Tensor, **data: Any) -> list[dict]:
        """Return per sample 'img_bbox' -> the dict of `SparseBox3DDecoder.decode`.

        `img` is (1, N, 3, H, W), `data` the `metas` of `Sparse4DHead.forward`.
        """
        if self.training:
            raise NotImplementedError("mm2onnx's Sparse4D cannot train; use its own repository")
        if isinstance(img, list):
            if len(img) != 1:
                raise DataError(
                    f'Sparse4D supports one augmentation at test time, got {len(img)}; keep one in '
                    'the pipeline'
                )
            img = img[0]
            data = {key: value[0] if isinstance(value, list) else value for key, value in data.items()}
        data.pop('return_loss', None), data.pop('rescale', None)
        outputs = self.head(self.extract_feat(tap('img', img)), data)
        return [dict(img_bbox=result) for result in self.head.post_process(outputs)]
