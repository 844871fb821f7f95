"""VAD at test time: detector, data set, transformer and head; `steps.py` runs the transformer.

Source: hustvl/VAD 1688c4b, `VAD/VAD.py`, `VAD/VAD_transformer.py`, `VAD/VAD_head.py`,
`core/bbox/coders/{fut_nms_free_coder,map_nms_free_coder}.py`.
Glossary: C channels, P points of a line, n results; see `steps.py`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER_SEQUENCE
from mmcv.cnn.bricks.transformer import build_transformer_layer_sequence
from mmdet.datasets import DATASETS
from mmdet.models import DETECTORS, HEADS
from mmdet.models.utils.builder import TRANSFORMER
from torch import Tensor, nn

from mm2onnx_driving.layers.bev_view import (
    BevHead,
    DetectionTransformerDecoder,
    PerceptionTransformer,
)
from mm2onnx_driving.layers.camera_detector import BevDetector
from mm2onnx_driving.layers.datasets import BevNuScenesDataset
from mm2onnx_driving.vad.steps import OUTPUTS, predict
from mmdeploy_ext.upstream.models.catalogue import registered_if_named
from mmdeploy_ext.upstream.models.conditional_detr import box_branch, class_branch

# ---- detector and data set


@registered_if_named(DATASETS)
class VADCustomNuScenesDataset(BevNuScenesDataset):
    """The data set of the view, plus the command."""

    def get_data_info(self, index: int) -> dict[str, Any]:
        return dict(super().get_data_info(index), ego_fut_cmd=self.data_infos[index]['gt_ego_fut_cmd'])


@registered_if_named(DETECTORS)
class VAD(BevDetector):
    """Objects with trajectories, lines and plans."""

    def forward_test(self, img_metas: list, img: list[Tensor], **data: Any) -> list[dict]:
        """Return one dict, 'pts_bbox' -> the dict of `VADHead.get_bboxes`, and the command."""
        (result,) = super().forward_test(img_metas, img, **data)
        return [dict(pts_bbox=dict(result['pts_bbox'], ego_fut_cmd=data['ego_fut_cmd'][0]))]

    def result_of(self, sample: dict[str, Any]) -> dict[str, Any]:
        return {
            name: value.to('cpu') if name == 'boxes_3d' else value.cpu() for name, value in sample.items()
        }


# ---- transformer: containers of parameters


@registered_if_named(TRANSFORMER_LAYER_SEQUENCE)
class MapDetectionTransformerDecoder(DetectionTransformerDecoder):
    """The layers of the decoder of lines."""


@registered_if_named(TRANSFORMER_LAYER_SEQUENCE)
class CustomTransformerDecoder(DetectionTransformerDecoder):
    """Layers that attend to the same tokens."""


@registered_if_named(TRANSFORMER)
class VADPerceptionTransformer(PerceptionTransformer):
    """Encoder, decoders of objects and of lines, and shared embeddings."""

    def __init__(self, map_decoder: dict, **settings: Any) -> None:
        super().__init__(**settings)
        self.map_decoder = build_transformer_layer_sequence(map_decoder)
        self.map_reference_points = nn.Linear(self.embed_dims, 2)


# ---- head: queries and branches of objects, lines, modes and the car

DECODERS = ('motion_decoder', 'motion_map_decoder', 'ego_agent_decoder', 'ego_map_decoder')
MAP_CODE_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


class LineLayer(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.ReLU())


class LineEncoder(nn.Module):
    """Points of lines (1, V, P, C) to tokens (1, V, C): each layer appends the largest of all points."""

    def __init__(self, channels: int, layers: int = 3) -> None:
        super().__init__()
        self.layer_seq = nn.Sequential()
        for number in range(layers):
            self.layer_seq.add_module(f'lmlp_{number}', LineLayer(channels, channels // 2))

    def forward(self, points: Tensor) -> Tensor:
        for layer in self.layer_seq:
            points = layer.mlp(points)
            points = torch.cat([points, points.amax(-2, keepdim=True).expand_as(points)], -1)
        return points.amax(-2)


@registered_if_named(HEADS)
class VADHead(BevHead):
    """Test-time head; arguments as upstream, and of `BevHead`."""

    shifts_present = True

    def __init__(
        self,
        *,
        map_bbox_coder: dict,
        map_num_vec: int = 20,
        map_num_pts_per_vec: int = 2,
        map_num_classes: int = 3,
        map_code_size: int = 2,
        map_code_weights: Sequence[float] | None = None,
        fut_ts: int = 6,
        fut_mode: int = 6,
        ego_fut_mode: int = 3,
        map_thresh: float = 0.5,
        dis_thresh: float = 0.2,
        num_reg_fcs: int = 2,
        **settings: Any,
    ) -> None:
        decoders = {name: settings.pop(name) for name in DECODERS}
        super().__init__(num_reg_fcs=num_reg_fcs, **settings)
        channels, layers = self.transformer.embed_dims, len(self.transformer.map_decoder.layers)
        self.map_num_vec, self.map_num_pts_per_vec = map_num_vec, map_num_pts_per_vec
        self.fut_ts, self.fut_mode, self.ego_fut_mode = fut_ts, fut_mode, ego_fut_mode
        self.map_thresh, self.dis_thresh, self.max_lines = map_thresh, dis_thresh, map_bbox_coder['max_num']
        weights = torch.tensor(tuple(map_code_weights or MAP_CODE_WEIGHTS))
        self.map_code_weights = nn.Parameter(weights, requires_grad=False)
        self.traj_branches = nn.ModuleList([box_branch(2 * channels, num_reg_fcs, 2 * fut_ts)])
        self.traj_cls_branches = nn.ModuleList([class_branch(2 * channels, num_reg_fcs, 1)])
        self.map_cls_branches = nn.ModuleList(
            class_branch(channels, num_reg_fcs, map_num_classes) for _ in range(layers)
        )
        self.map_reg_branches = nn.ModuleList(
            box_branch(channels, num_reg_fcs, map_code_size) for _ in range(layers)
        )
        self.map_instance_embedding = nn.Embedding(map_num_vec, 2 * channels)
        self.map_pts_embedding = nn.Embedding(map_num_pts_per_vec, 2 * channels)
        self.motion_mode_query, self.ego_query = nn.Embedding(fut_mode, channels), nn.Embedding(1, channels)
        self.lane_encoder = LineEncoder(channels)
        for name, cfg in decoders.items():
            setattr(self, name, build_transformer_layer_sequence(cfg))
        for name in ('pos_mlp_sa', 'pos_mlp', 'ego_agent_pos_mlp', 'ego_map_pos_mlp'):
            setattr(self, name, nn.Linear(2, channels))
        self.agent_fus_mlp = nn.Sequential(
            nn.Linear(2 * fut_mode * channels, channels),
            nn.LayerNorm(channels),
            nn.ReLU(),
            nn.Linear(channels, channels),
        )
        self.ego_fut_decoder = box_branch(2 * channels, num_reg_fcs, 2 * ego_fut_mode * fut_ts)

    def forward(
        self, maps: Sequence[Tensor], img_metas: list[dict], prev_bev: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return 'bev_embed' (Q, 1, C) and `steps.OUTPUTS` by name."""
        view = self.encode(maps, img_metas, prev_bev)
        return dict(zip(OUTPUTS, predict(self, view), strict=True), bev_embed=view.transpose(0, 1))

    def get_bboxes(self, outputs: dict[str, Tensor], img_metas: list[dict]) -> list[dict[str, Any]]:
        """Return a dict for each sample, best first: boxes, their steps, lines in m, and the plans' steps."""
        samples = []
        for number, meta in enumerate(img_metas):
            last = {name: outputs[name][-1][number] for name in OUTPUTS[:-1]}
            found = self.bbox_coder.decode_single(last['all_cls_scores'], last['all_bbox_preds'])
            boxes = found['bboxes'].clone()
            boxes[:, 2] -= boxes[:, 5] * 0.5
            logits = last['map_all_cls_scores']
            scores, pairs = logits.sigmoid().view(-1).topk(min(self.max_lines, logits.numel()))
            low, high = boxes.new_tensor(self.pc_range).split(3)
            rows = torch.div(pairs, logits.shape[1], rounding_mode='floor')
            samples.append(
                dict(
                    boxes_3d=meta['box_type_3d'](boxes, boxes.shape[-1]),
                    scores_3d=found['scores'],
                    labels_3d=found['labels'],
                    trajs_3d=last['all_traj_preds'][found['rows']],
                    map_scores_3d=scores,
                    map_labels_3d=pairs % logits.shape[1],
                    map_pts_3d=last['map_all_pts_preds'][rows] * (high - low)[:2] + low[:2],
                    ego_fut_preds=outputs['ego_fut_preds'][number],
                )
            )
        return samples
