"""StreamPETR as Autoware's camera_streampetr loads it: three graphs by its names, and the manifest.

Source: autoware_universe 5e12a711, autoware_camera_streampetr; tier4/AWML 7a6ec07c, StreamPETR/deploy (facts,
no code).

Glossary: N cameras, H, W network input in pixels, h, w feature map, C channels, T tokens, Q queries, K
classes.
"""

import dataclasses

import torch
from torch import Tensor, nn

from mm2onnx_driving.autoware.contract import AutowareContract, companion_texts, published
from mm2onnx_driving.autoware.nodes import STREAMPETR
from mm2onnx_driving.common.camera import with_examples
from mm2onnx_driving.streampetr import graphs
from mm2onnx_driving.streampetr import steps as temporal
from mm2onnx_driving.streampetr.graphs import ExtractImgFeat, HeadStep, RigEmbedding
from mm2onnx_driving.streampetr.memory import FIELDS
from mm2onnx_driving.streampetr.steps import Memory
from mm2onnx_driving.streampetr.targets.autoware import from_node
from mmdeploy_ext.families.contracts import PUBLISHED
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import Graph, GraphSpec, TensorSpec


class NodeImages(ExtractImgFeat):
    """Backbone and neck with the node's batch axis, planes and norm; `model.rule` is the model's."""

    def __init__(self, model: nn.Module, planes: str) -> None:
        super().__init__(model)
        rule = model.rule
        self.turned, *change = from_node(planes, rule.mean, rule.std, rule.to_rgb)
        for name, values in zip(('scale', 'shift'), change, strict=True):
            constant = torch.tensor(values.reshape(3, 1, 1), dtype=torch.float32)
            self.register_buffer(name, constant, persistent=False)

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        """Return img_feats (1, N, C, h, w) of img (1, N, 3, H, W) in the node's normalisation."""
        planes = img[0]
        if self.turned:
            planes = planes.index_select(1, torch.tensor([2, 1, 0], device=img.device))
        if (self.scale != 1).any():
            planes = planes * self.scale
        if self.shift.any():
            planes = planes + self.shift
        return super().forward(planes)


class NodePositions(RigEmbedding):
    """The graph of the calibration, with the node's inputs."""

    def forward(self, img_metas_pad: Tensor, intrinsics: Tensor, img2lidar: Tensor) -> tuple[Tensor, Tensor]:
        """Return pos_embed (1, T, C), cone (1, T, 8), of intrinsics and img2lidar (1, N, 4, 4).

        `img2lidar` maps pixels times depth to the LiDAR frame.
        """
        return super().forward(img2lidar, intrinsics + 0.0 * img_metas_pad.sum())


class NodeMemoryHead(HeadStep):
    """The head as a step with its memory in the map of the node."""

    def forward(
        self,
        x: Tensor,
        pos_embed: Tensor,
        cone: Tensor,
        data_ego_pose: Tensor,
        data_ego_pose_inv: Tensor,
        embedding: Tensor,
        reference_point: Tensor,
        timestamp: Tensor,
        egopose: Tensor,
        velo: Tensor,
    ) -> tuple[Tensor, ...]:
        """Compute one frame of features `x` (1, N, C, h, w).

        `data_ego_pose` (1, 4, 4) maps the vehicle (the frame of the boxes) to the map; `data_ego_pose_inv` is
        its inverse. Returns all_cls_scores (1, K, Q), logits, all_bbox_preds (1, 10, Q), and the memory: new
        rows, then the n old rows, or a scene's initial rows if `egopose` is zero.
        """
        prev_exists = egopose.abs().sum().view(1)  # 0 for a memory that the node has zeroed, else above 0
        state = Memory(embedding, reference_point, timestamp, egopose, velo)
        no_time = 0.0 * prev_exists
        outputs, _, after = self.step(x, pos_embed, cone, state, data_ego_pose_inv, no_time, prev_exists)
        after = temporal.move(after, data_ego_pose, no_time)
        scores, boxes = (outputs[f'all_{name}'][-1].transpose(1, 2) for name in ('cls_scores', 'bbox_preds'))
        return scores, boxes, *after


def specs(size: graphs.Sizes, options: Options) -> list[GraphSpec]:
    """Return the contracts of the three graphs, derived from the deploy contract's."""
    image, position = graphs.extract_img_feat(size, options), graphs.position_embedding(size, options)
    head = graphs.pts_head_memory(size, options)
    meaning = f'images as the node normalises them, planes in the order {", ".join(options.node_images)}'
    pictures = dataclasses.replace(image.inputs[0], axes=(1, *image.inputs[0].axes), meaning=meaning)
    pad = TensorSpec('img_metas_pad', 'float32', (3,), 'H, W, 3; a constant of the graph', 'pixel')
    lidar, intrinsics = position.inputs
    meanings = 'vehicle to a map with its origin at the first position', 'its inverse'
    poses = [
        TensorSpec(name, 'float32', (1, 4, 4), text, single=True)
        for name, text in zip(('data_ego_pose', 'data_ego_pose_inv'), meanings, strict=True)
    ]
    x = dataclasses.replace(head.tensor('img_feats'), name='x')
    before = [_rows(head.tensor(f'pre_memory_{field}'), size.memory, field) for field in FIELDS]
    after = [_rows(head.tensor(f'post_memory_{field}'), size.state, field) for field in FIELDS]
    results = [
        TensorSpec(
            name, 'float32', (1, rows, size.queries), f'{head.tensor(name).meaning}; one column per query'
        )
        for name, rows in (('all_cls_scores', size.classes), ('all_bbox_preds', size.code))
    ]
    inputs, outputs = (x, *position.outputs, *poses, *before), (*results, *after)
    tensors = (
        ((pictures,), image.outputs),
        ((pad, intrinsics, lidar), position.outputs),
        (inputs, outputs, graphs.STATE_PAIRS),
    )
    return [
        GraphSpec(f'streampetr/{name}', *rest) for name, rest in zip(STREAMPETR.graphs, tensors, strict=True)
    ]


def _rows(tensor: TensorSpec, rows: int, field: str) -> TensorSpec:
    meaning = f'{graphs.STATE_MEANING[field]}; positions relative to the first one; newest rows first'
    return dataclasses.replace(tensor, axes=(1, rows, *tensor.axes[2:]), meaning=meaning)


class StreamPetrFiles(AutowareContract):
    node, ignores_places = STREAMPETR, False
    settings = PUBLISHED

    def graphs(self, model: nn.Module, options: Options) -> list[Graph]:
        """Return the three graphs, in the order of `STREAMPETR.graphs`."""
        size = graphs.sizes(model, *model.input_sizes, layers='last')
        positions = NodePositions(model, size.cameras, size.height, size.width)
        head = NodeMemoryHead(model, all_layers=False)
        modules = NodeImages(model, options.node_images), positions, head
        return with_examples(model, list(zip(STREAMPETR.graphs, modules, specs(size, options), strict=True)))

    def runner_outputs(self, model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
        """Return the specs of the last layer's results, a row for each query."""
        head = graphs.pts_head_memory(graphs.sizes(model, *model.input_sizes, layers='last'), options)
        return head.tensor('all_cls_scores'), head.tensor('all_bbox_preds')

    def companions(self, model: nn.Module) -> dict[str, str]:
        size = graphs.sizes(model, *model.input_sizes)
        limits = model.pts_bbox_head.bbox_coder.post_center_range
        parameters = dict(
            class_names=published(STREAMPETR.classes, model.CLASSES),
            detection_range=[float(value) for value in limits],
            input_image_height=size.height,
            input_image_width=size.width,
            num_proposals=size.queries,
            rois_number=size.cameras,
            pre_memory_length=size.memory,
            post_memory_length=size.state,
        )
        return companion_texts(STREAMPETR, dict(model_params=parameters))
