"""The graphs of MVX-Net: a picture and points to features of voxels, then SECOND's graphs.

A point takes the features of the picture at the pixel that it projects to.
Source: mmdet3d 1.0.0rc6, models/fusion_layers/point_fusion.py, models/voxel_encoders/voxel_encoder.py
`DynamicVFE`; here each point's voxel is an input, upstream looks it up in a map of the grid.
Glossary: P points in range, D values of a point, N voxels, C channels, H, W picture in pixels, h, w map.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import grid_sample

from mmdeploy_ext.families.anchor3d.family import head_outputs
from mmdeploy_ext.families.anchor3d.mvxnet.runtime import CAMERA, FAMILY, FEATURES, PICTURE
from mmdeploy_ext.families.common.anchor_heads import flat_outputs
from mmdeploy_ext.families.common.lidar_graphs import points_and_head
from mmdeploy_ext.families.common.lidar_parts import parts_of
from mmdeploy_ext.families.common.pillars import dynamic_inputs, encode_points, point_width
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import Graph, GraphSpec, TensorSpec

EXAMPLE_HW = 64, 96
LOWEST = torch.finfo(torch.float32).min
"""Lower bound of fused features, which a `PointFusion` without activation may give below 0."""


class VoxelFeatures(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.img_backbone, self.img_neck = model.img_backbone, getattr(model, 'img_neck', None)
        self.encoder = encoder = parts_of(model).voxel_encoder
        origin = encoder.x_offset, encoder.y_offset, encoder.z_offset
        self.register_buffer('size', torch.tensor([encoder.vx, encoder.vy, encoder.vz]), persistent=False)
        self.register_buffer('origin', torch.tensor(origin), persistent=False)

    def forward(
        self,
        img: torch.Tensor,
        lidar2image: torch.Tensor,
        img_aug_matrix: torch.Tensor,
        points: torch.Tensor,
        rows: torch.Tensor,
        coors: torch.Tensor,
    ) -> torch.Tensor:
        """Return features (N, C); `points` are (P, D), `rows` (P,) int32 index coors (N, 4)."""
        maps = self.img_backbone(img)
        if self.img_neck is not None:
            maps = self.img_neck(maps)
        pixels = project(points[:, :3], lidar2image, img_aug_matrix)
        height, width = img.shape[2:]
        grid = torch.cat([pixels[:, :1] / width, pixels[:, 1:] / height], dim=1) * 2 - 1
        net = self.encoder
        return encode_points(
            net,
            net.vfe_layers,
            points,
            rows.long(),
            coors,
            (self.size, self.origin),
            averaged=bool(net.vfe_scatter.average_points),
            fuse=lambda features: fuse_picture(net.fusion_layer, maps, grid, features),
            fused_lower_bound=LOWEST,
        )


def project(xyz: torch.Tensor, lidar2image: torch.Tensor, img_aug_matrix: torch.Tensor) -> torch.Tensor:
    """Return the pixels (P, 2) x, y of points (P, 3) in the network's picture; the matrices are (4, 4).

    A point behind the camera gets the pixel of its ray through the camera.
    """
    projected = torch.cat([xyz, torch.ones_like(xyz[:, :1])], dim=1) @ lidar2image.t()
    scale = torch.stack([img_aug_matrix[0, 0], img_aug_matrix[1, 1]])
    return projected[:, :2] / projected[:, 2:3] * scale + img_aug_matrix[:2, 3]


def fuse_picture(
    fusion: nn.Module, maps: Sequence[torch.Tensor], grid: torch.Tensor, point_features: torch.Tensor
) -> torch.Tensor:
    """Return the features (P, C) of points by the layers of a `PointFusion`.

    `maps` are (1, C, h, w) per level, `grid` (P, 2) is x, y in the picture, -1 and 1 at its edges.
    """
    if fusion.lateral_convs is None:
        maps = maps[: len(fusion.img_levels)]  # as upstream, whatever the levels are
    else:
        lateral_convs = zip(fusion.img_levels, fusion.lateral_convs, strict=True)
        maps = [conv(maps[level]) for level, conv in lateral_convs]
    settings = dict(
        mode='bilinear' if fusion.aligned else 'nearest',
        padding_mode=fusion.padding_mode,
        align_corners=fusion.align_corners,
    )
    sampled = [grid_sample(level, grid[None, None], **settings)[0, :, 0].t() for level in maps]
    fused = fusion.img_transform(torch.cat(sampled, dim=1)) + fusion.pts_transform(point_features)
    if fusion.activate_out:
        fused = fused.relu()
    return fusion.fuse_conv(fused) if fusion.fuse_out else fused


def voxels_spec(width: int, channels: int) -> GraphSpec:
    inputs = (
        TensorSpec(PICTURE, 'float32', (1, 3, 'H', 'W'), 'image, normalised and padded'),
        TensorSpec(CAMERA[0], 'float32', (4, 4), 'LiDAR to pixels of the original image', single=True),
        TensorSpec(
            CAMERA[1],
            'float32',
            (4, 4),
            'pixels of the original image to the network input: factors of x and y on the diagonal, '
            'negative if it is flipped, and what is added to them in the last column',
            single=True,
        ),
        *(tensor for tensor, _ in dynamic_inputs(width)),
    )
    features = TensorSpec(FEATURES, 'float32', ('N', channels), 'features of each voxel')
    return GraphSpec(f'{FAMILY}/voxels', inputs, (features,))


def voxels_graph(model: nn.Module) -> Graph:
    parts, device = parts_of(model), next(model.parameters()).device
    spec = voxels_spec(point_width(parts.voxel_encoder), int(parts.middle_encoder.in_channels))
    random = torch.Generator().manual_seed(0)
    lidar2image = torch.tensor([[9.0, -5, 0, 1], [4, 0, -5, 1], [1, 0, 0, 1], [0, 0, 0, 1]])
    example = {
        PICTURE: torch.rand(1, 3, *EXAMPLE_HW, generator=random),
        CAMERA[0]: lidar2image,
        CAMERA[1]: torch.eye(4),
        **{tensor.name: value for tensor, value in dynamic_inputs(point_width(parts.voxel_encoder))},
    }
    example = {name: value.to(device) for name, value in example.items()}
    return Graph('voxels', VoxelFeatures(model).eval().to(device), spec, example)


def graphs(model: nn.Module, options: Options) -> list[Graph]:
    """Return three graphs: picture and points to voxels, to the bird's-eye view, and to raw outputs."""
    bev_meaning = "bird's-eye view (BEV) of the points"
    rest = points_and_head(model, options, FAMILY, flat_outputs, head_outputs(model), bev_meaning)
    return [voxels_graph(model), *rest]
