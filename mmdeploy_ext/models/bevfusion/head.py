"""TransFusion's head: peaks of a heat map become queries, one decoder layer refines them, and boxes are read.

Glossary: B samples, C channels, H, W cells of the bird's-eye view (rows are x, columns y), T = H W, Q
queries, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmdet.core import build_bbox_coder
from mmdet3d.core import bbox3d2result, circle_nms  # noqa: F401  (registers the box types)
from mmdet3d.models.builder import HEADS
from torch import Tensor, nn

from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.models.bevfusion.losses import HeadLosses
from mmdeploy_ext.models.bevfusion.queries import DecoderLayer, Predictor
from mmdeploy_ext.models.catalogue import offered

UNLIMITED = dict(nuScenes=(8, 9), Waymo=(1, 2))
"""Data set -> classes of which every cell may be a query, not peaks alone: the smallest objects."""
FIRST_LOGIT = -2.19
"""Of classes, before training: one of ten cells."""
RADII, MOST = dict(nuScenes=0.175, Waymo=0.7), 83
"""Of circle NMS: data set -> squared distance in m2 of boxes of a class of these; the most that stay."""
PREDICTED = ('center', 'height', 'dim', 'rot', 'vel')


@offered(HEADS)
class TransFusionHead(nn.Module):
    """Queries from a heat map, refined by one decoder layer; for nuScenes, as BEVFusion has it.

    A peak is the largest of a window of `nms_kernel_size` cells; `common_heads` is value -> (numbers,
    layers). There is one decoder layer, so that `auxiliary` losses are those of all; of upstream's keys,
    `conv_cfg`, `norm_cfg`, `bias` and `loss_iou` are not used.

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
        train_cfg: Mapping[str, Any] | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        bbox_coder: Mapping[str, Any] | None = None,
        loss_cls: Mapping[str, Any] | None = None,
        loss_heatmap: Mapping[str, Any] | None = None,
        loss_bbox: Mapping[str, Any] | None = None,
        **unused: Any,
    ) -> None:
        super().__init__()
        if num_decoder_layers != 1 or activation != 'relu':
            raise ConfigError(
                f'TransFusionHead: num_decoder_layers={num_decoder_layers}, activation={activation!r}; '
                f"expected 1 and 'relu'"
            )
        unknown = set(unused) - {'conv_cfg', 'norm_cfg', 'bias', 'loss_iou'}
        if unknown:
            raise ConfigError(f'TransFusionHead: unknown keys {", ".join(sorted(unknown))}')
        self.num_proposals, self.num_classes = num_proposals, num_classes
        self.nms_kernel_size = nms_kernel_size
        self.train_cfg, self.test_cfg = dict(train_cfg or {}), dict(test_cfg or {})
        self._check_test()
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
        unlimited[list(UNLIMITED[self.test_cfg['dataset']])] = True
        self.unlimited = unlimited  # no buffer: mmcv writes those into checkpoints, persistent or not
        self.loss_cfg = dict(cls=loss_cls, heatmap=loss_heatmap, bbox=loss_bbox)

    def init_weights(self) -> None:
        """Start from small class probabilities, and as transformers do."""
        for parameter in self.decoder.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for last in (self.heatmap_head[1], self.prediction_heads[0]['heatmap'][-1]):
            nn.init.constant_(last.bias, FIRST_LOGIT)

    def _check_test(self) -> None:
        kind, data = self.test_cfg.get('nms_type'), self.test_cfg.get('dataset')
        if kind not in (None, 'circle'):
            raise ConfigError(f"TransFusionHead: test_cfg.nms_type={kind!r}, expected None or 'circle'")
        if data not in UNLIMITED:
            raise ConfigError(
                f'TransFusionHead: test_cfg.dataset={data!r}, expected {" or ".join(UNLIMITED)}'
            )

    def forward(self, feats: Tensor | Sequence[Tensor]) -> dict[str, Tensor]:
        """Return what is predicted for each query of (B, in_channels, H, W), or of a list of it alone.

        Returns:
            'center' (B, 2, Q) cells, x first; 'height' (B, 1, Q) m; 'dim' (B, 3, Q) log m; 'rot' (B, 2, Q)
            sine and cosine; 'vel' (B, 2, Q) m/s; 'heatmap' (B, K, Q) logits; 'query_heatmap_score' (B, K, Q);
            'query_labels' (B, Q); 'dense_heatmap' (B, K, H, W) logits.
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
        position = centres(places, width)
        keys = centres(torch.arange(cells, device=flat.device), width).expand(len(flat), -1, -1)
        queries = self.decoder[0](queries, flat, position, keys)
        values = self.prediction_heads[0](queries.transpose(1, 2))
        values['center'] = values['center'] + position.transpose(1, 2)
        score = heat.flatten(2).gather(2, places[:, None].expand(-1, heat.shape[1], -1))
        return dict(values, query_heatmap_score=score, query_labels=labels, dense_heatmap=dense)

    def peaks(self, heat: Tensor) -> Tensor:
        """Return a heat map (B, K, H, W) of probabilities without what is not the largest of its window.

        Cells of the border are in no window. Of classes in `UNLIMITED` every cell stays.
        """
        margin = self.nms_kernel_size // 2
        largest = nn.functional.max_pool2d(heat, self.nms_kernel_size, stride=1)
        largest = nn.functional.pad(largest, (margin,) * 4)
        return torch.where((heat == largest) | self.unlimited.to(heat.device), heat, 0.0)

    def proposals(self, heat: Tensor) -> Tensor:
        """Return the best (class, cell) pairs of a heat map, (B, Q) int64 as `class * H * W + cell`."""
        return heat.flatten(1).topk(self.num_proposals).indices

    def scores(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """Return (B, K, Q): of its own class the product of both probabilities, 0 of the others."""
        is_own_class = nn.functional.one_hot(predictions['query_labels'], self.num_classes).transpose(1, 2)
        return predictions['heatmap'].sigmoid() * predictions['query_heatmap_score'] * is_own_class

    def candidates(self, predictions: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (B, Q, 9), scores (B, Q) and labels (B, Q), -1 where the coder drops a box."""
        boxes = self.bbox_coder.boxes(*(predictions[name] for name in PREDICTED if name in predictions))
        scores = self.scores(predictions).amax(1)
        return (
            boxes,
            scores,
            torch.where(self.bbox_coder.kept(boxes, scores), predictions['query_labels'], -1),
        )

    def loss(
        self, predictions: Mapping[str, Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Return the losses of what `forward` gave, see `HeadLosses`."""
        losses = HeadLosses(
            **self.loss_cfg, train_cfg=self.train_cfg, coder=self.bbox_coder, classes=self.num_classes
        )
        return losses(predictions, boxes, labels)

    @torch.no_grad()
    def get_bboxes(self, predictions: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return 'bboxes' (n, 9), 'scores' (n,), 'labels' (n,) per sample, see `TransFusionBBoxCoder`."""
        values = (predictions[name] for name in PREDICTED if name in predictions)
        boxes = self.bbox_coder.decode(self.scores(predictions), *values)
        return [self.spread_out(sample) for sample in boxes]

    @property
    def nms(self) -> dict[str, Any] | None:
        """What circle NMS takes: classes, the squared distance in m2, the most of a class; None without."""
        if self.test_cfg.get('nms_type') is None:
            return None
        data = self.test_cfg['dataset']
        return dict(classes=list(UNLIMITED[data]), radius=RADII[data], most=MOST)

    def spread_out(self, detections: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the boxes of one sample without those too near to a better one; others stay as they are."""
        if self.nms is None:
            return detections
        is_kept = torch.ones_like(detections['scores'], dtype=torch.bool)
        for label in self.nms['classes']:
            rows = (detections['labels'] == label).nonzero()[:, 0]
            places = torch.cat([detections['bboxes'][rows, :2], detections['scores'][rows, None]], 1)
            chosen_rows = circle_nms(places.cpu().numpy(), self.nms['radius'], self.nms['most'])
            is_kept[rows] = False
            is_kept[rows[torch.as_tensor(chosen_rows, dtype=torch.long, device=rows.device)]] = True
        return {name: value[is_kept] for name, value in detections.items()}


def centres(places: Tensor, width: int) -> Tensor:
    """Return the centres (..., 2) of cells numbered row by row; the row, which is x, first."""
    return torch.stack([places // width, places % width], -1).float() + 0.5
