"""The attentions of BEVFormer: layers with upstream's names, run by `sampling.py`.

Source: fundamentalvision/BEVFormer 66b65f3,
`modules/{temporal_self_attention,spatial_cross_attention,decoder}.py`.
"""

from collections.abc import Sequence
from typing import Any

from mmcv.cnn.bricks.registry import ATTENTION
from mmcv.cnn.bricks.transformer import build_attention
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttention
from mmcv.runner.base_module import BaseModule
from torch import nn

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named


class DeformableSampler(BaseModule):
    """The linear layers of a deformable attention."""

    def __init__(
        self, embed_dims: int, num_heads: int, num_levels: int, num_points: int, queues: int = 1
    ) -> None:
        super().__init__()
        if embed_dims % num_heads:
            raise ConfigError(
                f'{type(self).__name__}: embed_dims is {embed_dims}, expected a multiple of num_heads = '
                f'{num_heads}'
            )
        self.embed_dims, self.num_heads = embed_dims, num_heads
        self.num_levels, self.num_points = num_levels, num_points
        samples = queues * num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(queues * embed_dims, 2 * samples)
        self.attention_weights = nn.Linear(queues * embed_dims, samples)
        self.value_proj = nn.Linear(embed_dims, embed_dims)


@registered_if_named(ATTENTION)
class TemporalSelfAttention(DeformableSampler):
    """Cells of the bird's-eye view look into the last view and into the first queries of the present one.

    Raises ConfigError unless `num_levels` is 1 (upstream's default: 4) and `num_bev_queue` 2.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        num_bev_queue: int = 2,
        im2col_step: int = 64,
        dropout: float = 0.1,
        batch_first: bool = True,
        norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        if (num_levels, num_bev_queue) != (1, 2):
            raise ConfigError(
                f'TemporalSelfAttention: num_levels={num_levels}, num_bev_queue={num_bev_queue}; expected '
                "1 and 2: the current and the previous bird's-eye view, with one level"
            )
        super().__init__(embed_dims, num_heads, num_levels, num_points, num_bev_queue)
        self.output_proj = nn.Linear(embed_dims, embed_dims)


@registered_if_named(ATTENTION)
class MSDeformableAttention3D(DeformableSampler):
    """Samples around the points of a pillar in the cameras' maps; no output layer."""

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 8,
        im2col_step: int = 64,
        dropout: float = 0.1,
        batch_first: bool = True,
        norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(embed_dims, num_heads, num_levels, num_points)


@registered_if_named(ATTENTION, builds=('MSDeformableAttention3D',))
class SpatialCrossAttention(BaseModule):
    """Cells of the bird's-eye view look into the cameras that see their pillars; mean over cameras."""

    def __init__(
        self,
        embed_dims: int = 256,
        num_cams: int = 6,
        pc_range: Sequence[float] | None = None,
        dropout: float = 0.1,
        init_cfg: dict | None = None,
        batch_first: bool = False,
        deformable_attention: dict | None = None,
        **training: Any,
    ) -> None:
        super().__init__()
        default = dict(type='MSDeformableAttention3D', embed_dims=embed_dims, num_levels=4)
        self.deformable_attention = build_attention(deformable_attention or default)
        self.embed_dims, self.num_cams = embed_dims, num_cams
        self.output_proj = nn.Linear(embed_dims, embed_dims)


@registered_if_named(ATTENTION)
class CustomMSDeformableAttention(MultiScaleDeformableAttention):
    """Upstream's name for mmcv's deformable attention in its decoder."""
