"""The family of sparse LiDAR backbones: BEVFusion, the published CenterPoint, mmdet3d's encoder."""

import dataclasses
from typing import Any

import numpy as np
import torch
from mmdet3d.models import build_model
from torch import nn

from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.common.lidar_parts import encode
from mmdeploy_ext.families.sparse import Int8Reference, SparseFamily
from mmdeploy_ext.families.sparse_backbone import graphs
from mmdeploy_ext.spec.preparation import VoxelRule
from mmdeploy_ext.upstream import compat
from mmdeploy_ext.upstream.models.building import build_without_weights
from mmdeploy_ext.upstream.weights.sparse_checkpoint import LoadReport, load_model


@dataclasses.dataclass(eq=False, kw_only=True)
class EncoderFamily(SparseFamily):
    orders: tuple[str, ...]
    int8: Int8Reference
    name = 'sparse_backbone'
    encoder, settings = staticmethod(graphs.encoder), staticmethod(graphs.settings)

    def claims(self, cfg: Any) -> Claim:
        return Claim.PART if graphs.encoder_type(cfg) in ENCODERS else Claim.NO

    def for_config(self, cfg: Any) -> SparseFamily:
        return ENCODERS[graphs.encoder_type(cfg)]

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
"""First and last convolution -> precisions in NVIDIA's INT8 files."""
BEVFUSION = EncoderFamily(orders=('xyz', 'zyx'), int8=Int8Reference(ENDS, half_ranges=True))
"""BEVFusion's LiDAR backbone.

NVIDIA's `model.half()` rounds the ranges, too (ALGORITHM.md of the golden files, 5).
"""
CENTERPOINT = EncoderFamily(
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
"""The published CenterPoint's encoder.

The Add of a block has its path; conv_input is folded last (ALGORITHM.md of the golden files, 5 and 6).
"""
SPARSE_ENCODER = EncoderFamily(orders=('zyx', 'xyz'), int8=Int8Reference(ENDS))
"""mmdet3d's SparseEncoder in SECOND, CenterPoint, SASSD and others."""
ENCODERS = dict(
    BEVFusionSparseEncoder=BEVFUSION,
    CenterPointSparseEncoder=CENTERPOINT,
    SparseEncoder=SPARSE_ENCODER,
    SparseEncoderSASSD=SPARSE_ENCODER,
)
