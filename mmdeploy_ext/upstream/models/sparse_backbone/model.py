"""LiDAR branch of a detector: points -> voxels -> means -> sparse encoder -> bird's-eye view.

Glossary: P points, D values per point (x, y, z, ...), N voxels, C channels, B samples, H, W rows and columns
of the bird's-eye view: y and x, with the axes 'xyz' x and y.
"""

from collections.abc import Sequence

import torch
from mmcv.cnn import build_norm_layer
from mmcv.ops import DynamicScatter, Voxelization
from mmdet3d.models.builder import DETECTORS, MIDDLE_ENCODERS, build_middle_encoder
from mmdet3d.models.middle_encoders import SparseEncoder
from mmdet3d.ops import make_sparse_convmodule
from spconv.pytorch import SparseConv3d, SparseConvTensor, SparseModule, SparseSequential, SubMConv3d
from torch import nn

from mmdeploy_ext.base.errors import DataError, ShapeError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named

# Sparse encoders that mmdet3d lacks: BEVFusion's, in x, y, z order, and the published CenterPoint's.
#
# Glossary: B samples, N voxels of the batch, I features per voxel, C output channels, X', Y', Z' cells that
# the strides leave of the grid.


NORM = dict(type='BN1d', eps=1e-3, momentum=0.01)


@registered_if_named(MIDDLE_ENCODERS)
class BEVFusionSparseEncoder(SparseEncoder):
    """mmdet3d's SparseEncoder with x, y, z axes, as in mit-han-lab's BEVFusion.

    Blocks of a stage and the input convolution share neighbours by the indice key 'subm<stage>', as NVIDIA's
    exporter writes them; upstream's blocks have no key and compute the same.

    Source: mit-han-lab/bevfusion 326653d, mmdet3d/models/backbones/sparse_encoder.py.
    """

    axes = 'xyz'

    def __init__(
        self,
        in_channels: int,
        sparse_shape: Sequence[int],
        order: Sequence[str] = ('conv', 'norm', 'act'),
        norm_cfg: dict = NORM,
        output_channels: int = 128,
        encoder_channels: Sequence[Sequence[int]] = ((16,), (32, 32, 32), (64, 64, 64), (64, 64, 64)),
        **kwargs: object,
    ) -> None:
        super().__init__(
            in_channels,
            list(sparse_shape),
            tuple(order),
            norm_cfg=norm_cfg,
            output_channels=output_channels,
            encoder_channels=encoder_channels,
            **kwargs,
        )
        self.conv_out = make_sparse_convmodule(
            encoder_channels[-1][-1],
            output_channels,
            kernel_size=(1, 1, 3),
            stride=(1, 1, 2),
            norm_cfg=norm_cfg,
            indice_key='spconv_down2',
            conv_type='SparseConv3d',
        )
        for stage_number, stage in enumerate(self.encoder_layers.children(), start=1):
            for conv in stage.modules():
                if isinstance(conv, SubMConv3d):
                    conv.indice_key = f'subm{stage_number}'

    def forward(
        self, voxel_features: torch.Tensor, coors: torch.Tensor, batch_size: int, **kwargs: object
    ) -> torch.Tensor:
        """Return the bird's-eye view (B, C * Z', X', Y'), channel c * Z' + z: rows are x.

        Features are (N, I), coordinates (N, 4): sample, x, y, z.
        """
        x = SparseConvTensor(voxel_features, coors.int(), self.sparse_shape, batch_size)
        x = self.conv_out(self.encoder_layers(self.conv_input(x)))
        dense = x.dense().permute(0, 1, 4, 2, 3)
        return dense.reshape(dense.shape[0], dense.shape[1] * dense.shape[2], *dense.shape[3:])


class CenterPointBlock(SparseModule):
    """Two submanifold 3x3x3 convolutions with a bias, the shortcut, ReLU."""

    def __init__(self, channels: int, norm_cfg: dict, indice_key: str) -> None:
        super().__init__()
        options = dict(kernel_size=3, padding=1, bias=True, indice_key=indice_key)
        self.conv1 = SubMConv3d(channels, channels, **options)
        self.bn1 = build_norm_layer(norm_cfg, channels)[1]
        self.relu = nn.ReLU()
        self.conv2 = SubMConv3d(channels, channels, **options)
        self.bn2 = build_norm_layer(norm_cfg, channels)[1]

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        out = self.conv1(x)
        out = self.conv2(out.replace_feature(self.relu(self.bn1(out.features))))
        out = out.replace_feature(self.bn2(out.features) + x.features)
        return out.replace_feature(self.relu(out.features))


@registered_if_named(MIDDLE_ENCODERS)
class CenterPointSparseEncoder(nn.Module):
    """The published CenterPoint's encoder (SpMiddleResNetFHD), with det3d's parameter names; z, y, x axes.

    Source: tianweiy/CenterPoint 3cf7d87, det3d/models/backbones/scn.py.
    """

    axes = 'zyx'

    def __init__(
        self,
        in_channels: int,
        sparse_shape: Sequence[int],
        channels: Sequence[int] = (16, 32, 64, 128),
        output_channels: int = 128,
        norm_cfg: dict = NORM,
    ) -> None:
        super().__init__()
        self.sparse_shape = list(sparse_shape)

        def norm(num_channels: int) -> nn.Module:
            return build_norm_layer(norm_cfg, num_channels)[1]

        def blocks(stage: int) -> list[nn.Module]:
            return [CenterPointBlock(channels[stage], norm_cfg, f'res{stage}') for _ in range(2)]

        self.conv_input = SparseSequential(
            SubMConv3d(in_channels, channels[0], 3, bias=False, indice_key='res0'),
            norm(channels[0]),
            nn.ReLU(),
        )
        self.conv1 = SparseSequential(*blocks(0))
        for stage in range(1, 4):
            padding = (0, 1, 1) if stage == 3 else 1
            down = SparseConv3d(channels[stage - 1], channels[stage], 3, 2, padding=padding, bias=False)
            layers = SparseSequential(down, norm(channels[stage]), nn.ReLU(), *blocks(stage))
            setattr(self, f'conv{stage + 1}', layers)
        self.extra_conv = SparseSequential(
            SparseConv3d(channels[3], output_channels, (3, 1, 1), (2, 1, 1), bias=False),
            norm(output_channels),
            nn.ReLU(),
        )

    def forward(self, voxel_features: torch.Tensor, coors: torch.Tensor, batch_size: int) -> torch.Tensor:
        """Return the bird's-eye view (B, C * Z', Y', X'), channel c * Z' + z: rows are y.

        Features are (N, I), coordinates (N, 4): sample, z, y, x.
        """
        x = SparseConvTensor(voxel_features, coors.int(), self.sparse_shape, batch_size)
        for layers in (self.conv_input, self.conv1, self.conv2, self.conv3, self.conv4, self.extra_conv):
            x = layers(x)
        dense = x.dense()
        return dense.view(dense.shape[0], dense.shape[1] * dense.shape[2], *dense.shape[3:])


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
