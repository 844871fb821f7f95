"""LiDAR branch of a detector: points -> voxels -> means -> sparse encoder -> bird's-eye view.

Glossary: P points, D values per point (x, y, z, ...), N voxels, C channels, B samples, H, W rows and columns
of the bird's-eye view: y and x, with the axes 'xyz' x and y.
"""

from collections.abc import Sequence

import torch
from mmcv.ops import DynamicScatter, Voxelization
from mmdet3d.models.builder import DETECTORS, build_middle_encoder
from torch import nn

from mmdeploy_ext.base.errors import DataError, ShapeError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named


@registered_if_named(DETECTORS)
class LidarBackbone(nn.Module):
    """Points to bird's-eye view, on CPU and GPU: a detector without its dense network.

    Args:
        voxel_layer: options of mmcv's Voxelization; `max_num_points=-1` is dynamic.
        encoder: config of the sparse encoder.
        encoder_path: path of the encoder in the published model, such as 'encoders.lidar.backbone'.
        output_shape: unused here; an export compares (1, C, H, W) with the encoder's.
        train_cfg, test_cfg: unused.
    """

    def __init__(
        self,
        voxel_layer: dict,
        encoder: dict,
        encoder_path: str = 'backbone',
        output_shape: Sequence[int] | None = None,
        train_cfg: object = None,
        test_cfg: object = None,
    ) -> None:
        super().__init__()
        layer = {
            key: tuple(value) if isinstance(value, list) else value for key, value in voxel_layer.items()
        }
        self.voxel_layer = Voxelization(**layer)
        self.scatter = DynamicScatter(layer['voxel_size'], layer['point_cloud_range'], average_points=True)
        self.encoder_path = encoder_path
        self.in_channels = encoder['in_channels']
        *parents, last = encoder_path.split('.')
        owner: nn.Module = self
        for name in parents:
            owner.add_module(name, nn.Module())
            owner = owner.get_submodule(name)
        owner.add_module(last, build_middle_encoder(encoder))

    @property
    def encoder(self) -> nn.Module:
        return self.get_submodule(self.encoder_path)

    @torch.no_grad()
    def voxelize(self, points: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the voxels' means (N, in_channels) float32, and coordinates (N, 4) int32, of points."""
        features, coordinates = [], []
        for sample, cloud in enumerate(points):
            cloud = self._checked(cloud, sample)
            if not len(cloud):
                means, cells = cloud, cloud.new_zeros((0, 3), dtype=torch.int32)
            elif self.voxel_layer.max_num_points == -1:
                means, cells = self.scatter(cloud, self.voxel_layer(cloud))
            else:
                voxels, cells, counts = self.voxel_layer(cloud)
                means = voxels.sum(1) / counts.clamp(min=1).to(voxels)[:, None]
            if axes(self.encoder) == 'xyz':
                cells = cells.flip(1)  # mmcv counts z, y, x
            features.append(means)
            coordinates.append(nn.functional.pad(cells.int(), (1, 0), value=sample))
        return torch.cat(features), torch.cat(coordinates)

    def _checked(self, cloud: torch.Tensor, sample: int) -> torch.Tensor:
        if cloud.ndim != 2 or cloud.shape[1] < self.in_channels:
            raise ShapeError(
                f'points of sample {sample} are {tuple(cloud.shape)}; expected (P, {self.in_channels}) or '
                f'wider: the encoder has in_channels={self.in_channels}'
            )
        cloud = cloud[:, : self.in_channels].float().contiguous()
        broken = int((~cloud.isfinite()).any(1).sum())
        if broken:
            raise DataError(
                f'points of sample {sample}: {broken} of {len(cloud)} have NaN or infinity; remove them'
            )
        return cloud

    def forward(self, points: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return (B, C, H, W) of a batch of point clouds; zeros if no point is in range."""
        features, coordinates = self.voxelize(points)
        return self.encoder(features, coordinates, len(points))


def axes(encoder: nn.Module) -> str:
    return getattr(encoder, 'axes', 'zyx')
