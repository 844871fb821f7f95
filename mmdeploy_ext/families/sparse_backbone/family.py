"""The families of sparse LiDAR backbones: BEVFusion, the published CenterPoint, mmdet3d's encoder.

What the attributes and methods without a docstring are for is documented where they are defined first:
`families/base.py` and `families/sparse.py`.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from mmdet3d.models import build_model
from torch import nn

from mmdeploy_ext import compat
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.parts.lidar_parts import encode
from mmdeploy_ext.families.sparse import Int8Reference, SparseFamily
from mmdeploy_ext.families.sparse_backbone import graphs
from mmdeploy_ext.models.building import build_without_weights
from mmdeploy_ext.preprocess.points import VoxelRule
from mmdeploy_ext.weights.sparse_checkpoint import LoadReport, load_model


@dataclasses.dataclass(eq=False, kw_only=True)
class EncoderFamily(SparseFamily):
    """Models of mmdet3d, or `LidarBackbone`, whose sparse encoder has a certain registered type.

    The families are instances of it, see below.

    Attributes:
        name: name of the family.
        encoder_types: the types of encoders that the family exports.
        orders: both orders of axes; the first is that of the model and of NVIDIA's files.
        int8: particulars of NVIDIA's INT8 file.
    """

    name: str
    encoder_types: tuple[str, ...]
    orders: tuple[str, ...]
    int8: Int8Reference
    encoder, settings = staticmethod(graphs.encoder), staticmethod(graphs.settings)

    def claims(self, cfg: Any) -> Claim:
        parts = graphs.parts_of(cfg)
        if parts is not None and cfg.model[parts['encoder']].get('type') in self.encoder_types:
            return Claim.PART
        return Claim.NO

    def build(self, cfg: Any) -> nn.Module:
        return build_without_weights(cfg, build_model)

    def preprocess_rule(self, cfg: Any) -> VoxelRule:
        return graphs.voxel_rule(cfg, self.orders[0])

    def load(self, model: nn.Module, path: str, weight_layout: str = 'auto') -> LoadReport:
        return load_model(path, model, graphs.encoder_path(model), weight_layout=weight_layout)

    def voxel_layer(self, model: nn.Module) -> nn.Module:
        return model.pts_voxel_layer if hasattr(model, 'pts_voxel_layer') else model.voxel_layer

    def run_encoder(self, model: nn.Module, features: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
        with compat.single_thread(), torch.no_grad():
            dense = encode(self.encoder(model), torch.from_numpy(features), torch.from_numpy(coordinates))
        return dense.numpy()


ENDS = {'conv_input.0': ('fp16', 'int8'), 'conv_out.0': ('int8', 'fp16')}
"""First and last convolution -> its precision and that of its output in NVIDIA's INT8 files."""
BEVFUSION = EncoderFamily(
    name='bevfusion',
    encoder_types=('BEVFusionSparseEncoder',),
    orders=('xyz', 'zyx'),
    int8=Int8Reference(ENDS, half_ranges=True),
)
"""BEVFusion's LiDAR backbone, x, y, z.

Source of its INT8 file: ALGORITHM.md of the tests' golden files, 5: NVIDIA's `model.half()` rounds the
ranges, too."""
CENTERPOINT = EncoderFamily(
    name='centerpoint-det3d',
    encoder_types=('CenterPointSparseEncoder',),
    orders=('zyx', 'xyz'),
    int8=Int8Reference(
        {
            'conv_input.0': ('fp16', 'fp16'),
            'conv1.0.conv1': ('fp16', 'fp16'),
            'conv1.0.conv2': ('fp16', 'fp16'),
            'conv1.0': ('fp16', 'int8'),
            'extra_conv.0': ('int8', 'fp16'),
        },
        fp16_folded=('conv_input.0',),
        unfolded_ranges=('conv_input.0',),
        add_method='max',
    ),
)
"""The published CenterPoint's encoder, z, y, x.

Source of its INT8 file: ALGORITHM.md of the tests' golden files, 5 and 6: the Add of a block has its path;
conv_input is folded last."""
SPARSE_ENCODER = EncoderFamily(
    name='sparse-encoder',
    encoder_types=('SparseEncoder', 'SparseEncoderSASSD'),
    orders=('zyx', 'xyz'),
    int8=Int8Reference(ENDS),
)
"""mmdet3d's SparseEncoder in any of its detectors: SECOND, CenterPoint, SASSD ...; z, y, x.

Precisions are those of BEVFusion's, whose encoder has another order of axes; ranges are not rounded."""
