"""The base class of families of sparse LiDAR backbones."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mmdeploy_ext.contract.options import SPARSE, Options
from mmdeploy_ext.families.base import BACKBONE, Family
from mmdeploy_ext.preprocess.points import VoxelRule
from mmdeploy_ext.sparse.ir import Triple

if TYPE_CHECKING:
    import torch

    from mmdeploy_ext.weights.sparse_checkpoint import LoadReport


@dataclasses.dataclass(frozen=True)
class EncoderSettings:
    """How a sparse encoder reads its voxels.

    Attributes:
        path: path of the encoder in the model, e.g. 'pts_middle_encoder'; '' is the model itself.
        order: axis order of its coordinates and weights, 'xyz' or 'zyx'.
        spatial_shape: `sparse_shape` of the encoder, in that order; along z it may be one above the voxels.
        in_channels: features per voxel.
        output_shape: (1, C, H, W) of the encoder's map, with rows along x if `order` is 'xyz', along y if it
            is 'zyx'; None if that is not known.
    """

    path: str
    order: str
    spatial_shape: Triple
    in_channels: int
    output_shape: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Int8Reference:
    """How NVIDIA's scripts make the INT8 file of a family; the defaults stand for a family that has none.

    Attributes:
        precisions: module path -> (precision, output precision) if it is not int8; without any the first
            convolution and the output of the last one are fp16, see `sparse.precision.fp16_ends`. These and
            the modules below are for exports with `--int8-fp16-input-output` alone.
        half_ranges: whether they round ranges to fp16.
        fp16_folded: modules of convolutions into which they fold batch normalisation in fp16, unlike the
            rest.
        unfolded_ranges: modules with weight ranges of the kernel before folding.
        add_method: how they calibrate residual additions; '': as convolutions.
    """

    precisions: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    half_ranges: bool = False
    fp16_folded: tuple[str, ...] = ()
    unfolded_ranges: tuple[str, ...] = ()
    add_method: str = ''


class SparseFamily(Family):
    """One family of models with a sparse-convolution backbone.

    Attributes:
        orders: both coordinate orders of files; the first is the default.
        int8: particulars of NVIDIA's INT8 file.
    """

    task = 'bev'
    product = BACKBONE
    samples = 'sweeps'
    options = SPARSE
    orders: ClassVar[tuple[str, ...]] = ('xyz', 'zyx')
    int8: ClassVar[Int8Reference] = Int8Reference()

    def choose(self, /, **values: Any) -> Options:
        return super().choose(**{**values, 'order': values.get('order') or self.orders[0]})

    @abc.abstractmethod
    def settings(self, cfg: Any, model: torch.nn.Module) -> EncoderSettings:
        """Return how the encoder reads its voxels.

        ConfigError: the config's grid, voxel size and output shape disagree.
        """

    @abc.abstractmethod
    def encoder(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the sparse encoder inside the model."""

    @abc.abstractmethod
    def voxel_layer(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return mmcv's `Voxelization` of the model, which a proof compares the rule in a file with."""

    @abc.abstractmethod
    def preprocess_rule(self, cfg: Any) -> VoxelRule:
        """Return how points become voxels; the metadata keeps it."""

    @abc.abstractmethod
    def load(self, model: torch.nn.Module, path: str, weight_layout: str = 'auto') -> LoadReport:
        """Load the encoder's weights (and the rest of the model, if the file has it).

        `weight_layout`, of the kernels in the file, is 'auto', 'spconv1', 'spconv2' or 'spconv2-rskc'. The
        report has the layouts that were found, ranges of a PTQ file and keys that nothing took.
        CheckpointError: no such file, damaged, or without a key of the encoder.
        """

    def num_classes(self, model: torch.nn.Module) -> int:
        return 0

    @abc.abstractmethod
    def run_encoder(
        self, model: torch.nn.Module, features: np.ndarray, coordinates: np.ndarray
    ) -> np.ndarray:
        """Return the output (1, channels, H, W) float32 of the unpatched module on spconv, with one thread.

        For its axes see `EncoderSettings.output_shape`.

        `features` are (N, C) float32, a row per voxel; `coordinates` (N, 4) int32 are the sample 0, then the
        voxel in the order of axes of `EncoderSettings.order`.
        """
