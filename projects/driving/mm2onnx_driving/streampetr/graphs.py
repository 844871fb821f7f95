"""StreamPETR's graphs: the detector's own steps; `spec.py` has their contracts.

Glossary: N cameras, H, W network input in pixels, h, w feature map, T = N h w tokens, C channels, n rows of
the memory, L decoder layers in the outputs (all, or 1: the last one), Q queries, K classes.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mm2onnx_driving.common.camera_graphs import with_examples
from mm2onnx_driving.streampetr import spec
from mm2onnx_driving.streampetr.model.live import steps_of
from mm2onnx_driving.streampetr.model.memory import Memory
from mm2onnx_driving.streampetr.runtime import GRAPHS
from mmdeploy_ext.families.common.lidar_parts import OfModel
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import Graph


def _constants(model: nn.Module, compute: Callable[[nn.Module], Sequence[Tensor]]) -> list[Tensor]:
    with torch.no_grad():
        return [rows.clone() for rows in compute(model.pts_bbox_head)]


def register_frustum(module: nn.Module, cameras: int, height: int, width: int) -> None:
    (frustum,) = _constants(module.model, lambda head: [steps_of(head).frustum((height, width), cameras)])
    module.register_buffer('frustum', frustum, persistent=False)


class ExtractImgFeat(OfModel):
    """Backbone and neck."""

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        """Return img_feats (1, N, C, h, w) of img (N, 3, H, W), normalised."""
        return (self.model.extract_img_feat(img.unsqueeze(0)),)


class RigEmbedding(OfModel):
    """The position embedding, run once per rig."""

    def __init__(self, model: nn.Module, cameras: int, height: int, width: int) -> None:
        super().__init__(model)
        register_frustum(self, cameras, height, width)
        self.tokens_per_camera = self.frustum.shape[0] // cameras

    def forward(self, img2lidar: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
        """Return pos_embed (1, T, C) and cone (1, T, 8) of img2lidar and intrinsics (1, N, 4, 4).

        `img2lidar` is from pixels times depth to the LiDAR frame; `cone` has |fx|, |fy| in 1000 pixels, and
        two far points of a token's ray, relative to the range of positions.
        """
        steps = steps_of(self.model.pts_bbox_head)
        focal = steps.focal_per_token(intrinsics, self.tokens_per_camera)
        return steps.position_embedding(img2lidar, focal, self.frustum)


class HeadStep(nn.Module):
    """The head's step with its learned queries as constants; base of the graphs with the head.

    Attributes:
        model: the detector; parameters keep their names below it.
        all_layers: predictions of all decoder layers, not of the last one alone.
    """

    def __init__(self, model: nn.Module, all_layers: bool) -> None:
        super().__init__()
        self.model, self.all_layers = model, all_layers
        queries = _constants(model, lambda head: steps_of(head).learned_queries())
        for name, rows in zip(('tgt', 'query_pos', 'query_points'), queries, strict=True):
            self.register_buffer(name, rows, persistent=False)

    def step(self, *args: Tensor | Memory) -> tuple[dict[str, Tensor], Memory, Memory]:
        """Run `FrameSteps.step` with its arguments up to `prev_exists`."""
        queries = (self.tgt, self.query_pos, self.query_points)
        return steps_of(self.model.pts_bbox_head).step(*args, queries=queries, all_layers=self.all_layers)


class PtsHeadMemory(HeadStep):
    """The head as a step without side effects: the memory goes in and comes out as five tensors.

    Inputs are in the LiDAR frame and with ages at the time of the last frame, outputs of this frame.
    Velocities stay in the LiDAR frame of the row's origin.
    """

    def forward(
        self,
        img_feats: Tensor,
        pos_embed: Tensor,
        cone: Tensor,
        embedding: Tensor,
        reference_point: Tensor,
        timestamp: Tensor,
        egopose: Tensor,
        velo: Tensor,
        ego_motion: Tensor,
        delta_t_s: Tensor,
        prev_exists: Tensor,
    ) -> tuple[Tensor, ...]:
        """Compute one frame of `img_feats` (1, N, C, h, w) and the outputs of `RigEmbedding`.

        The memory is `embedding` (1, n, C), `reference_point` (1, n, 3), `timestamp` (1, n, 1), `egopose` (1,
        n, 4, 4) and `velo` (1, n, 2). `ego_motion` (1, 4, 4) is from the last LiDAR frame to this one,
        `delta_t_s` (1,) the time since; `prev_exists` (1,) 0 ignores the memory. Returned are all_cls_scores
        (L, 1, Q, K), logits, all_bbox_preds (L, 1, Q, 10), codes (`SpecFactory.predictions`), and the five
        tensors of the new memory.
        """
        state = Memory(embedding, reference_point, timestamp, egopose, velo)
        outputs, _, after = self.step(img_feats, pos_embed, cone, state, ego_motion, delta_t_s, prev_exists)
        return outputs['all_cls_scores'], outputs['all_bbox_preds'], *after


def graphs(model: nn.Module, options: Options) -> list[Graph]:
    size = spec.sizes(model, *model.input_sizes, options.layers)
    modules = (
        ExtractImgFeat(model),
        RigEmbedding(model, size.cameras, size.height, size.width),
        PtsHeadMemory(model, options.layers == 'all'),
    )
    contracts = (spec.extract_img_feat, spec.position_embedding, spec.pts_head_memory)
    specs = [contract(size, options) for contract in contracts]
    return with_examples(model, list(zip(GRAPHS, modules, specs, strict=True)))
