"""The graphs of ImVoxelNet: contracts and modules.

Source: mmdet3d 1.0.0rc6, models/detectors/imvoxelnet.py `extract_feat`, models/fusion_layers/point_fusion.py
`point_sample`, models/dense_heads/anchor3d_head.py `get_bboxes_single`.
Glossary: B batch, N voxels, X, Y, Z voxels along each axis, C channels, H, W network input in pixels, h, w
maps of the picture, A anchors of a level, n results of the fullest picture, K classes.
"""

import math

import torch
from torch import nn

from mmdeploy_ext.base.taps import tap
from mmdeploy_ext.exporting.postprocess.suppression import gather_rows, rows_of
from mmdeploy_ext.families.common import detector_parts
from mmdeploy_ext.families.common.anchor_heads import anchor_settings, flat_outputs
from mmdeploy_ext.families.common.image_graphs import image_input
from mmdeploy_ext.families.common.runtime.anchors3d import OUTPUTS, anchors_of, decode_deltas, turned_yaw
from mmdeploy_ext.families.common.suppression3d import best_rows, padded, result_specs, suppressed
from mmdeploy_ext.families.imvoxelnet.runtime import ImVoxelNetFacts
from mmdeploy_ext.runtime.preprocess.cam2img import PROJECTION
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import ColumnGroup, GraphSpec, Stage, TensorSpec
from mmdeploy_ext.upstream.operators.operator import hw

MEANINGS = dict(
    cls_score=('class logits of each anchor', 'logit'),
    bbox_pred=('deltas of each anchor', ''),
    dir_cls_pred=('logits of both directions of each anchor', 'logit'),
)
BOX = 'x y z of the bottom centre and sizes (m), yaw (rad), in the frame of the voxels'
SMALLEST = 32
"""Smallest side of a dynamic input, pixels: the stride of the last map."""
FULL_NAMES = ('boxes', 'scores', 'labels')


def voxel_points(model: nn.Module) -> torch.Tensor:
    """Return the centres (N, 3) of all voxels, metres; x changes fastest, then y, then z."""
    with torch.no_grad():
        (anchors,) = model.prior_generator.grid_anchors([model.n_voxels[::-1]], device='cpu')
    return anchors[:, :3]


def facts_of(model: nn.Module) -> ImVoxelNetFacts:
    head = model.bbox_head
    limit, convention = int(head.test_cfg['max_num']), model.box_convention
    return ImVoxelNetFacts(**anchor_settings(head), max_per_img=limit, box_convention=convention)


def camera_inputs(batch: int | str) -> tuple[TensorSpec, TensorSpec]:
    """Return the specs of cameras and ratios, in float32 also in a float16 graph."""
    camera = 'frame of the voxels (m) to pixels of the original image, times depth'
    ratios = 'w h w h ratios, input / original; 1 if the camera matrix refers to the input'
    return (
        TensorSpec(PROJECTION, 'float32', (batch, 4, 4), camera, single=True),
        TensorSpec('scale_factor', 'float32', (batch, 4), ratios, default=1.0, single=True),
    )


def raw_outputs(model: nn.Module, batch: int | str) -> tuple[TensorSpec, ...]:
    head, (columns, rows) = model.bbox_head, model.n_voxels[:2]
    widths = dict(cls_score=head.num_classes, bbox_pred=head.box_code_size, dir_cls_pred=2)
    outputs = []
    for name in facts_of(model).output_names:
        output, _ = name.rsplit('_', 1)
        axes = (batch, int(head.num_anchors * widths[output]), rows, columns)
        outputs.append(TensorSpec(name, 'float32', axes, *MEANINGS[output]))
    return tuple(outputs)


def spec(model: nn.Module, options: Options) -> GraphSpec:
    image = image_input(options, SMALLEST, detector_parts.multiple(model))
    batch = image.axes[0]
    inputs = (image, *camera_inputs(batch))
    if options.form == 'raw':
        return GraphSpec('imvoxelnet/raw', inputs, raw_outputs(model, batch))
    groups = (
        ColumnGroup('x y z', (0, 1, 2), 'm'),
        ColumnGroup('sizes', (3, 4, 5), 'm'),
        ColumnGroup('yaw', (6,), 'rad'),
    )
    return GraphSpec('imvoxelnet/full', inputs, result_specs(batch, 7, BOX, groups))


def stages(model: nn.Module, options: Options) -> list[Stage]:
    raw = facts_of(model).output_names
    inputs = ('input', PROJECTION, 'scale_factor')
    chain = [Stage('network', Network(model), inputs, raw)]
    if options.form == 'full':
        chain.append(Stage('postprocess', FullForm(model), raw, FULL_NAMES))
    return chain


def projected(points: torch.Tensor, cameras: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x and y (B, N), pixels, of points (N, 3), metres, in pictures of cameras (B, 4, 4)."""
    x, y, z = points.unbind(1)
    rows = [
        (cameras[:, row, :1] * x + cameras[:, row, 2:3] * z)
        + (cameras[:, row, 1:2] * y + cameras[:, row, 3:4])
        for row in range(3)
    ]
    return rows[0] / rows[2], rows[1] / rows[2]


def nearest_cells(pixels: torch.Tensor, side: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Return the nearest cells (B, N) along one axis of `pixels` (B, N); `side` and `cells` are ().

    The middle of the first cell is at pixel 0, of the last one at pixel `side`; half-way, the even cell wins.
    """
    return (((pixels / side * 2 - 1) + 1) / 2 * (cells - 1)).round()


class Network(nn.Module):
    """Pictures and cameras to the outputs of the head; parameters keep their names below `model.`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer('points', voxel_points(model), persistent=False)

    def forward(
        self, image: torch.Tensor, cameras: torch.Tensor, scale_factor: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Return the outputs named by `AnchorRule.output_names`.

        Args:
            image: (B, 3, H, W) float32, normalised and padded.
            cameras: (B, 4, 4), from the frame of the voxels, metres, to pixels of a picture times depth.
            scale_factor: (B, 4) `w h w h`, input / picture of the camera.
        """
        model = self.model
        maps = model.neck(model.backbone(image))[0]
        volume = tap('volume', self.volume(maps, image, cameras, scale_factor))
        outputs = flat_outputs(model.bbox_head(model.neck_3d(volume)))
        names = facts_of(model).output_names
        return tuple(tap(name, tensor) for name, tensor in zip(names, outputs, strict=True))

    def volume(
        self, maps: torch.Tensor, image: torch.Tensor, cameras: torch.Tensor, scale_factor: torch.Tensor
    ) -> torch.Tensor:
        """Return the features (B, C, X, Y, Z) of voxels, zero outside of the map; `maps` are (B, C, h, w)."""
        x, y = projected(self.points, cameras)
        (height, width), (map_height, map_width) = (hw(tensor).to(maps).unbind() for tensor in (image, maps))
        column = nearest_cells(x * scale_factor[:, :1], width, map_width)
        row = nearest_cells(y * scale_factor[:, 1:2], height, map_height)
        inside = (column >= 0) & (column <= map_width - 1) & (row >= 0) & (row <= map_height - 1)
        cells = map_height * map_width
        index = torch.where(inside, row * map_width + column, cells).to(torch.int64)  # also of NaN
        rows = rows_of(maps, maps.shape[1])  # (B, h * w, C)
        rows = torch.cat([rows, torch.zeros_like(rows[:, :1])], 1)
        first = torch.arange(rows.shape[0], device=index.device)[:, None] * rows.shape[1]
        features = rows.flatten(0, 1)[(index + first).flatten()]
        sizes = self.model.n_voxels[::-1]
        return features.reshape(-1, *sizes, maps.shape[1]).permute(0, 4, 3, 2, 1)


class FullForm(nn.Module):
    """The form 'full': boxes of the best anchors, suppression within classes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.facts = facts_of(model)
        columns, rows = model.n_voxels[:2]
        for level in range(self.facts.levels):
            anchors = torch.from_numpy(anchors_of(self.facts, level, rows, columns))
            self.register_buffer(f'anchors_{level}', anchors, persistent=False)

    def forward(self, *maps: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return boxes (B, n, 7), scores and labels (B, n), best first; rows behind are zero, label -1."""
        count = len(OUTPUTS)  # of a level
        levels = [
            best_rows(self.decoded(level, *maps[level * count : (level + 1) * count]), self.facts.nms_pre)
            for level in range(self.facts.levels)
        ]
        rows = {name: torch.cat([level[name] for level in levels], 1) for name in levels[0]}
        is_old = self.facts.box_convention == '0.17'
        above, yaw = rows['boxes'][..., [0, 1, 3, 4]], rows['boxes'][..., 6:7]
        above = torch.cat([above, -yaw if is_old else yaw], 2)
        limits = self.facts.score_thr, self.facts.nms_thr, self.facts.max_num
        best, indices, labels = suppressed(above, rows['scores'], *limits)
        boxes, turned = (gather_rows(rows[name], indices) for name in ('boxes', 'turned'))
        yaw = turned_yaw(torch, boxes[..., 6:7], turned, self.facts)
        sizes = boxes[..., [4, 3, 5] if is_old else [3, 4, 5]]
        yaw = -yaw - math.pi / 2 if is_old else yaw
        boxes = torch.cat([boxes[..., :3], sizes, yaw, boxes[..., 7:]], 2)
        return padded(dict(zip(FULL_NAMES, (boxes, best, labels), strict=True)))

    def decoded(
        self, level: int, logits: torch.Tensor, deltas: torch.Tensor, directions: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return boxes (B, A, 7), scores (B, A, K) and `turned` (B, A, 1) of maps (B, columns, Y, X)."""
        facts = self.facts
        logits, deltas, directions = (
            rows_of(maps, columns)
            for maps, columns in ((logits, facts.num_classes), (deltas, facts.code_size), (directions, 2))
        )
        turned = (directions[..., 1:] > directions[..., :1]).to(deltas)
        boxes = decode_deltas(torch, getattr(self, f'anchors_{level}'), deltas)
        return dict(boxes=boxes, scores=logits.sigmoid(), turned=turned)
