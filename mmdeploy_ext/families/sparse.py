"""The base class of families of sparse LiDAR backbones."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mmdeploy_ext.families.base import BACKBONE, Family
from mmdeploy_ext.runtime.sparse.ir import Triple
from mmdeploy_ext.spec.options import SPARSE, Options
from mmdeploy_ext.spec.preparation import VoxelRule

if TYPE_CHECKING:
    import torch

    from mmdeploy_ext.upstream.weights.sparse_checkpoint import LoadReport


@dataclasses.dataclass(frozen=True)
class EncoderSettings:
    """How a sparse encoder reads its voxels.

    Attributes:
        path: path of the encoder in the model, e.g. 'pts_middle_encoder', or ''.
        order: axis order of its coordinates and weights, 'xyz' or 'zyx'.
        spatial_shape: `sparse_shape` of the encoder, in this order; z may be one above the voxels.
        in_channels: features per voxel.
        output_shape: (1, C, H, W) of the map, rows along x for 'xyz', along y for 'zyx'; or None.
    """

    path: str
    order: str
    spatial_shape: Triple
    in_channels: int
    output_shape: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Int8Reference:
    """How NVIDIA's scripts make the INT8 file of a family; the defaults are for families without one.

    Attributes:
        precisions: module path -> (precision, output precision), if not int8, with
            `--int8-fp16-input-output`; empty: first convolution and last output are fp16
            (`exporting.sparse.precision.fp16_ends`).
        half_ranges: whether ranges are rounded to fp16.
        fp16_folded: convolutions with batch normalisation folded in fp16.
        unfolded_ranges: modules with weight ranges of the unfolded kernel.
        add_method: calibration of residual additions; '': as convolutions.
    """

    precisions: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    half_ranges: bool = False
    fp16_folded: tuple[str, ...] = ()
    unfolded_ranges: tuple[str, ...] = ()
    add_method: str = ''


class SparseFamily(Family):
    """Models with a sparse-convolution backbone.

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

        Raises ConfigError if grid, voxel size and output shape of the config disagree.
        """

    @abc.abstractmethod
    def encoder(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the sparse encoder inside the model."""

    @abc.abstractmethod
    def voxel_layer(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return mmcv's `Voxelization` of the model; a proof compares the file's rule with it."""

    @abc.abstractmethod
    def preprocess_rule(self, cfg: Any) -> VoxelRule:
        """Return how points become voxels; the metadata keeps it."""

    @abc.abstractmethod
    def load(self, model: torch.nn.Module, path: str, weight_layout: str = 'auto') -> LoadReport:
        """Load the encoder's weights, and the rest of the model if the file has it.

        `weight_layout` is 'auto', 'spconv1', 'spconv2' or 'spconv2-rskc'. The report has layouts, ranges of a
        PTQ file and unused keys. Raises CheckpointError for a missing or damaged file, or a missing key.
        """

    def num_classes(self, model: torch.nn.Module) -> int:
        return 0

    @abc.abstractmethod
    def run_encoder(
        self, model: torch.nn.Module, features: np.ndarray, coordinates: np.ndarray
    ) -> np.ndarray:
        """Return the output (1, channels, H, W) float32 of the unpatched module on spconv, with one thread.

        `features` are (N, C) float32; `coordinates` (N, 4) int32: sample 0, then the voxel in
        `EncoderSettings.order`.
        """
