"""BEVFormer as Autoware's tensorrt_bevformer loads it: one graph by its names, and its parameters.

Source: autoware_universe, autoware_tensorrt_bevformer (bevformer_node.cpp@0d02fce; facts, no code).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mm2onnx_driving.autoware.contract import AutowareContract, companion_texts, published
from mm2onnx_driving.autoware.nodes import BEVFORMER, CAMERAS
from mm2onnx_driving.bevformer.family import spec
from mm2onnx_driving.bevformer.plugins_export import (
    DeployedFrame,
    deployed_spec,
    predictions,
)
from mm2onnx_driving.common.bev import BevReference, with_sampling
from mm2onnx_driving.common.camera import camera_graphs
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.runtime.frames import Frame
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import Graph, TensorSpec

SCORE_THRESHOLD = 0.2
"""Score that a box has to exceed: the node's default."""
TRAINED_ORDER = (*range(7), 13, 14, 15, 10, 11, 12, 7, 8, 9, 16, 17)
"""Entry of a model's record -> entry of the node's record, see `bevformer.py`."""


class NodeFrame(DeployedFrame):
    """One frame with the node's record of the motion."""

    def record(self, can_bus: Tensor) -> Tensor:
        """Return the model's record (18,)."""
        places = list(TRAINED_ORDER)
        if self.model.can_bus_orientation == 'wwww':
            places[3:7] = [3] * 4
        return can_bus[torch.tensor(places, device=can_bus.device)]


class NodeReference(BevReference):
    """The detector's own test path; float32 positions and headings, as in the node, decide ties."""

    @property
    def notes(self) -> list[str]:
        return [
            *super().notes,
            "PyTorch's motion records are rounded to float32, as in the node",
        ]

    def record(self, frame: Frame) -> np.ndarray:
        return np.float32(super().record(frame)).astype(np.float64)


class BevFormerFiles(AutowareContract):
    node = BEVFORMER

    def check(self, cfg: Any) -> None:
        rule = self.family.preprocess_rule(cfg)
        if rule.num_cameras != CAMERAS:
            raise ConfigError(
                f'{cfg.filename}: --contract autoware: got {rule.num_cameras} cameras, the node has {CAMERAS}'
            )
        if not rule.normalised_first or rule.pad_size is not None:
            raise ConfigError(
                f'{cfg.filename}: --contract autoware: the test pipeline has other steps than the node, '
                'which normalises, resizes by a factor and pads to a multiple, in this order'
            )

    def graphs(self, model: nn.Module, options: Options) -> list[Graph]:
        module = NodeFrame(model, tuple(model.input_sizes[1:]))
        contract = deployed_spec(spec(model), 'autoware')
        return [with_sampling(*camera_graphs(model, options, [(*self.files, module, contract)]), options)]

    def reference(self, model: nn.Module) -> NodeReference:
        return NodeReference(model)

    def runner_outputs(self, model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
        return predictions(model, options)

    def companions(self, model: nn.Module) -> dict[str, str]:
        head, rule = model.pts_bbox_head, model.rule
        transformer = head.transformer
        parameters: dict[str, Any] = dict(
            data_params=dict(
                CAM_NUM=rule.num_cameras,
                input_width=rule.source[1],
                input_height=rule.source[0],
                mean=[float(value) for value in rule.mean],
                std=[float(value) for value in rule.std],
                to_rgb=rule.to_rgb,
                pad_divisor=rule.size_divisor,
                scale_factor=float(rule.scale),
            ),
            model_params=dict(
                batch_size=1,
                bev_h=int(head.bev_h),
                bev_w=int(head.bev_w),
                nb_dec=len(transformer.decoder.layers),
                dim=int(transformer.embed_dims),
                num_query=int(head.query_embedding.num_embeddings),
                num_classes=int(head.cls_branches[-1][-1].out_features),
                code_size=10,
            ),
            post_process_params=dict(
                score_thre=SCORE_THRESHOLD,
                has_twist=True,
                class_names=published(BEVFORMER.classes, model.CLASSES),
                max_num=int(head.bbox_coder.max_num),
                pc_range=[float(value) for value in head.pc_range],
                post_center_range=[float(value) for value in head.bbox_coder.post_center_range],
            ),
        )
        return companion_texts(BEVFORMER, parameters)
