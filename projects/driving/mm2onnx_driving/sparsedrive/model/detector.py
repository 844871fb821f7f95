"""SparseDrive's detector and data set at test time.

Source of names: swc-17/SparseDrive ec0225d, models/{sparsedrive,sparsedrive_head}.py.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmcv.runner.base_module import BaseModule
from mmdet.datasets import DATASETS
from mmdet.models import DETECTORS, HEADS, build_backbone, build_head, build_neck
from torch import Tensor

from mm2onnx_driving.layers.datasets.track_dataset import NuScenes3DDetTrackDataset
from mm2onnx_driving.layers.sparse_instances.aggregation import Features, flatten_maps
from mm2onnx_driving.layers.sparse_instances.steps import Pictures
from mm2onnx_driving.sparsedrive.model.decoder import decoded
from mm2onnx_driving.sparsedrive.model.steps import Moment, ego_feature, run_frame
from mmdeploy_ext.upstream.models.catalogue import registered_if_named


@registered_if_named(DATASETS)
class NuScenes3DDataset(NuScenes3DDetTrackDataset):
    """The data set of Sparse4D, plus the command."""

    def __init__(self, map_classes: Any = None, eval_config: Any = None, **settings: Any) -> None:
        super().__init__(**settings)

    def get_data_info(self, index: int) -> dict[str, Any]:
        return dict(super().get_data_info(index), gt_ego_fut_cmd=self.data_infos[index]['gt_ego_fut_cmd'])


@registered_if_named(HEADS)
class SparseDriveHead(BaseModule):
    """Heads for boxes, lines, motion and plan; `memory`: of the last frame, or None."""

    def __init__(self, det_head: dict, map_head: dict, motion_plan_head: dict, **training: Any) -> None:
        super().__init__()
        self.det_head, self.map_head = build_head(det_head), build_head(map_head)
        self.motion_plan_head = build_head(motion_plan_head)
        self.reset()

    def reset(self) -> None:
        self.memory: dict[str, Tensor] | None = None
        self.metas: Mapping[str, Any] | None = None

    def forward(self, features: Features, metas: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        """Return the outputs of the four tasks, named as upstream, and keep the memory."""
        bank, moment = self.det_head.instance_bank, None
        if self.memory is not None:
            gap = (metas['timestamp'] - self.metas['timestamp']).float()
            bank.mask = gap.abs() <= bank.max_time_interval
            now, before = metas['img_metas'][0], self.metas['img_metas'][0]
            motion = gap.new_tensor(np.array([now['T_global_inv'] @ before['T_global']]))
            default = torch.full_like(gap, bank.default_time_interval)
            moment = Moment(torch.where((gap != 0) & bank.mask, gap, default), bank.mask, motion, gap)
        height, width = features.spatial_shapes[0, -1].tolist()
        begin = int(features.level_start_index[0, -1])
        front = features.rows[:, begin : begin + height * width].transpose(1, 2).unflatten(2, (height, width))
        ego = ego_feature(self.motion_plan_head.instance_queue, front)
        pictures = Pictures(*features, metas['projection_mat'][0], metas['image_wh'][0])
        command = metas['gt_ego_fut_cmd'].argmax(-1)
        found, self.memory = run_frame(self, pictures, ego, command, self.memory, moment)
        self.metas, bank.temp_confidence = metas, found['confidence']
        return found, command

    def post_process(self, outputs: tuple[Any, ...], data: Mapping[str, Any]) -> list[dict[str, Any]]:
        found, command = outputs
        return [decoded(self, found, int(command[0]))]


@registered_if_named(DETECTORS)
class SparseDrive(BaseModule):
    def __init__(self, img_backbone: dict, img_neck: dict, head: dict, **training: Any) -> None:
        super().__init__()
        self.img_backbone, self.img_neck = build_backbone(img_backbone), build_neck(img_neck)
        self.head = build_head(head)

    def extract_feat(self, img: Tensor) -> Features:
        """Return the feature maps of images (1, N, 3, H, W)."""
        return flatten_maps(self.img_neck(self.img_backbone(img[0])))

    def forward(self, img: Tensor, **data: Any) -> list[dict]:
        """Return 'img_bbox' -> the results of one frame; `data` has the metas of the head."""
        if isinstance(img, list):
            img, data = (
                img[0],
                {key: value[0] if isinstance(value, list) else value for key, value in data.items()},
            )
        outputs = self.head(self.extract_feat(img), data)
        return [dict(img_bbox=result) for result in self.head.post_process(outputs, data)]
