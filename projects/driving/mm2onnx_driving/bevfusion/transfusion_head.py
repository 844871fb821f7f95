"""TransFusion's head: peaks of a heat map become queries, which one decoder layer refines.

Glossary: B samples, C channels, H, W cells of the bird's-eye view (rows are x, columns y), T = H W, Q
queries, K classes, n positions, keys or boxes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmdet.core import build_bbox_coder
from mmdet3d.core import bbox3d2result, circle_nms  # noqa: F401  (registers the box types)
from mmdet3d.models.builder import HEADS
from torch import Tensor, nn

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.upstream.models.catalogue import registered_if_named

VALUES = ('center', 'height', 'dim', 'rot', 'vel')
UNLIMITED = dict(nuScenes=(8, 9), Waymo=(1, 2))
"""Data set -> classes of small objects: every cell may be a query, not only peaks."""
CIRCLES = dict(nuScenes=(8, 9), Waymo=(0, 1, 2))
"""Data set -> classes with circle NMS, each by itself."""
UNUSED = {'conv_cfg', 'norm_cfg', 'bias', 'train_cfg', 'loss_cls', 'loss_heatmap', 'loss_bbox', 'loss_iou'}
RADII_M2, MAX_BOXES = dict(nuScenes=0.175, Waymo=0.7), 83
"""Circle NMS: data set -> squared distance, m2; most boxes of a class."""


class PositionEmbedding(nn.Module):
    """Positions to channels; both layers have upstream's names."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.position_embedding_head = nn.Sequential(
            nn.Conv1d(2, channels, 1),
            nn.BatchNorm1d(channels),
            nn.ReLU(True),
            nn.Conv1d(channels, channels, 1),
        )

    def forward(self, positions: Tensor) -> Tensor:
        """Return embeddings (B, n, C) of positions (B, n, 2) in cells."""
        return self.position_embedding_head(positions.transpose(1, 2)).transpose(1, 2)


class Attention(nn.MultiheadAttention):
    """Multi-head attention written out: PyTorch's own kernel has no form in ONNX."""

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:  # type: ignore[override]
        """Return (B, Q, C) of queries (B, Q, C) and keys (B, n, C), also the values."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        query, key, value = (
            nn.functional.linear(tokens, weight, bias).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for tokens, weight, bias in zip((queries, keys, keys), weights, biases, strict=True)
        )
        # opset 13 has no scaled_dot_product_attention
        attention = (query * query.shape[3] ** -0.5 @ key.transpose(2, 3)).softmax(3)
        mixed = nn.functional.dropout(attention, self.dropout, self.training) @ value
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    """Queries look at each other, then at every cell; keys and values carry the positions, too.

    Source: mit-han-lab/bevfusion db75150, models/utils/transformer.py:12-111.
    """

    def __init__(self, channels: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(channels, heads, dropout)
        self.multihead_attn = Attention(channels, heads, dropout)
        self.linear1, self.linear2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(dropout)
        self.self_posembed, self.cross_posembed = PositionEmbedding(channels), PositionEmbedding(channels)

    def forward(self, queries: Tensor, keys: Tensor, query_pos: Tensor, key_pos: Tensor) -> Tensor:
        """Return refined queries (B, Q, C), which look at keys (B, T, C).

        Positions are (B, Q, 2) and (B, T, 2) cells, x first.
        """
        query_embedding, key_embedding = self.self_posembed(query_pos), self.cross_posembed(key_pos)
        embedded = queries + query_embedding
        queries = self.norm1(queries + self.dropout(self.self_attn(embedded, embedded)))
        keys = keys + key_embedding
        attended = self.multihead_attn(queries + query_embedding, keys)
        queries = self.norm2(queries + self.dropout(attended))
        hidden = self.dropout(self.linear1(queries).relu())
        return self.norm3(queries + self.dropout(self.linear2(hidden)))


class Predictor(nn.ModuleDict):
    """A small network for each kind of value of a box, and for the classes."""

    def __init__(self, channels: int, outputs: Mapping[str, Sequence[int]], hidden: int = 64) -> None:
        super().__init__()
        for name, (count, layers) in outputs.items():
            blocks = [
                ConvModule(
                    hidden if index else channels, hidden, 1, bias='auto',
                    conv_cfg=dict(type='Conv1d'), norm_cfg=dict(type='BN1d'),
                )
                for index in range(layers - 1)
            ]  # fmt: skip
            self[name] = nn.Sequential(*blocks, nn.Conv1d(hidden if blocks else channels, count, 1))

    def forward(self, queries: Tensor) -> dict[str, Tensor]:
        return {name: layers(queries) for name, layers in self.items()}


@registered_if_named(HEADS)
class TransFusionHead(nn.Module):
    """Queries from a heat map, refined by one decoder layer.

    Args:
        num_proposals: Q.
        in_channels, hidden_channel: channels of the map; C.
        num_classes: K, at least 10 with 'nuScenes' and 3 with 'Waymo' (ConfigError).
        num_decoder_layers, activation: must be 1 and 'relu'.
        num_heads: of both attentions.
        nms_kernel_size: side of a peak's window, cells.
        ffn_channel: width of the feed-forward network.
        common_heads: kind of value, such as 'center' -> (channels, layers) of its network.
        num_heatmap_convs: layers of the network of the classes.
        test_cfg: `dataset`, 'nuScenes' or 'Waymo', and `nms_type`, 'circle' or None (ConfigError).
        bbox_coder: config of the box coder.
        auxiliary, dropout, bn_momentum, unused: for training; ConfigError for keys not in `UNUSED`.

    Source: mit-han-lab/bevfusion db75150, models/heads/bbox/transfusion.py.
    """

    def __init__(
        self,
        num_proposals: int = 128,
        auxiliary: bool = True,
        in_channels: int = 512,
        hidden_channel: int = 128,
        num_classes: int = 10,
        num_decoder_layers: int = 1,
        num_heads: int = 8,
        nms_kernel_size: int = 3,
        ffn_channel: int = 256,
        dropout: float = 0.1,
        bn_momentum: float = 0.1,
        activation: str = 'relu',
        common_heads: Mapping[str, Sequence[int]] | None = None,
        num_heatmap_convs: int = 2,
        test_cfg: Mapping[str, Any] | None = None,
        bbox_coder: Mapping[str, Any] | None = None,
        **unused: Any,
    ) -> None:
        super().__init__()
        if num_decoder_layers != 1 or activation != 'relu':
            raise ConfigError(
                f'TransFusionHead: num_decoder_layers={num_decoder_layers}, activation={activation!r}; '
                f"expected 1 and 'relu'"
            )
        unknown = set(unused) - UNUSED
        if unknown:
            raise ConfigError(f'TransFusionHead: unknown keys {", ".join(sorted(unknown))}')
        self.num_proposals, self.num_classes = num_proposals, num_classes
        self.nms_kernel_size = nms_kernel_size
        self.test_cfg = dict(test_cfg or {})
        nms_type, dataset = self.test_cfg.get('nms_type'), self.test_cfg.get('dataset')
        if nms_type not in (None, 'circle'):
            raise ConfigError(f"TransFusionHead: test_cfg.nms_type={nms_type!r}, expected None or 'circle'")
        if dataset not in UNLIMITED:
            raise ConfigError(
                f'TransFusionHead: test_cfg.dataset={dataset!r}, expected {" or ".join(UNLIMITED)}'
            )
        needed = max(UNLIMITED[dataset]) + 1
        if num_classes < needed:
            raise ConfigError(
                f'TransFusionHead: num_classes={num_classes}, expected {needed} or more: '
                f'test_cfg.dataset={dataset!r} has settings for its class {needed - 1}'
            )
        self.bbox_coder = build_bbox_coder(bbox_coder)
        self.shared_conv = nn.Conv2d(in_channels, hidden_channel, 3, padding=1)
        self.heatmap_head = nn.Sequential(
            ConvModule(hidden_channel, hidden_channel, 3, padding=1, norm_cfg=dict(type='BN2d')),
            nn.Conv2d(hidden_channel, num_classes, 3, padding=1),
        )
        self.class_encoding = nn.Conv1d(num_classes, hidden_channel, 1)
        layer = DecoderLayer(hidden_channel, num_heads, ffn_channel, dropout)
        self.decoder = nn.ModuleList([layer])
        outputs = dict(common_heads or {}, heatmap=(num_classes, num_heatmap_convs))
        self.prediction_heads = nn.ModuleList([Predictor(hidden_channel, outputs)])
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.momentum = bn_momentum
        unlimited = torch.zeros(num_classes, 1, 1, dtype=torch.bool)
        unlimited[list(UNLIMITED[dataset])] = True
        self.unlimited = unlimited  # no buffer: mmcv writes those into checkpoints, persistent or not

    def forward(self, feats: Tensor | Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the predictions for the queries of a map (B, in_channels, H, W), or of a list of one map.

        Returns:
            'center' (B, 2, Q) cells, x first; 'height' (B, 1, Q) z of the centre, m; 'dim' (B, 3, Q)
                logarithms of width, length and height in m; 'rot' (B, 2, Q) sine and cosine of the yaw; 'vel'
                (B, 2, Q) m/s, if any; 'heatmap' (B, K, Q) logits; 'query_heatmap_score' (B, K, Q),
                probabilities in the queries' cells, 0 outside of `peaks`; 'query_labels' (B, Q) int64;
                'dense_heatmap' (B, K, H, W) logits.
        """
        shared = self.shared_conv(feats if isinstance(feats, Tensor) else feats[0])
        dense = self.heatmap_head(shared)
        width = dense.shape[3]
        heat = self.peaks(dense.sigmoid())
        top = self.proposals(heat)
        cells = dense.shape[2] * width
        labels, places = top // cells, top % cells
        flat = shared.flatten(2).transpose(1, 2)
        queries = flat.gather(1, places[..., None].expand(-1, -1, flat.shape[2]))
        queries = queries + self.class_encoding.weight[:, :, 0].T[labels] + self.class_encoding.bias
        position = cell_centres(places, width)
        keys = cell_centres(torch.arange(cells, device=flat.device), width).expand(len(flat), -1, -1)
        queries = self.decoder[0](queries, flat, position, keys)
        predictions = self.prediction_heads[0](queries.transpose(1, 2))
        predictions['center'] = predictions['center'] + position.transpose(1, 2)
        score = heat.flatten(2).gather(2, places[:, None].expand(-1, heat.shape[1], -1))
        return dict(predictions, query_heatmap_score=score, query_labels=labels, dense_heatmap=dense)

    def peaks(self, heat: Tensor) -> Tensor:
        """Return the heat map (B, K, H, W), 0 where a cell is no peak."""
        margin = self.nms_kernel_size // 2
        largest = nn.functional.max_pool2d(heat, self.nms_kernel_size, stride=1)
        largest = nn.functional.pad(largest, (margin,) * 4)
        return torch.where((heat == largest) | self.unlimited.to(heat.device), heat, 0.0)

    def proposals(self, heat: Tensor) -> Tensor:
        """Return the best (class, cell) pairs, (B, Q) int64 as `class * H * W + cell`."""
        return heat.flatten(1).topk(self.num_proposals).indices

    def scores(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """Return (B, K, Q): product of both probabilities for the query's class, else 0."""
        of_query = nn.functional.one_hot(predictions['query_labels'], self.num_classes).transpose(1, 2)
        return predictions['heatmap'].sigmoid() * predictions['query_heatmap_score'] * of_query

    def candidates(self, predictions: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (B, Q, 9), scores (B, Q) and labels (B, Q), -1 if the coder drops a box."""
        boxes = self.bbox_coder.boxes(*(predictions[name] for name in VALUES if name in predictions))
        scores = self.scores(predictions).amax(1)
        valid = self.bbox_coder.within_limits(boxes, scores)
        return boxes, scores, torch.where(valid, predictions['query_labels'], -1)

    @torch.no_grad()
    def get_bboxes(self, predictions: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return 'bboxes' (n, 9), 'scores' (n,), 'labels' (n,) per sample, in the order of the queries."""
        values = (predictions[name] for name in VALUES if name in predictions)
        boxes = self.bbox_coder.decode(self.scores(predictions), *values)
        return [self.suppress(sample) for sample in boxes]

    @property
    def nms(self) -> dict[str, Any] | None:
        """Circle NMS: `classes`, `radius`, a squared distance in m2, and `most` boxes of a class."""
        if self.test_cfg.get('nms_type') is None:
            return None
        dataset = self.test_cfg['dataset']
        return dict(classes=list(CIRCLES[dataset]), radius=RADII_M2[dataset], most=MAX_BOXES)

    def suppress(self, boxes: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.nms is None:
            return boxes
        remains = torch.ones_like(boxes['scores'], dtype=torch.bool)
        for label in self.nms['classes']:
            rows = (boxes['labels'] == label).nonzero()[:, 0]
            centres = torch.cat([boxes['bboxes'][rows, :2], boxes['scores'][rows, None]], 1)
            best = circle_nms(centres.cpu().numpy(), self.nms['radius'], self.nms['most'])
            remains[rows] = False
            remains[rows[torch.as_tensor(best, dtype=torch.long, device=rows.device)]] = True
        return {name: value[remains] for name, value in boxes.items()}


def cell_centres(places: Tensor, width: int) -> Tensor:
    """Return the centres (..., 2) of cells numbered row by row; the row, which is x, first."""
    return torch.stack([places // width, places % width], -1).float() + 0.5
