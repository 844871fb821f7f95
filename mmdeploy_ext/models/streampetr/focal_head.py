"""The 2D auxiliary head: classes, boxes and projected 3D centres on every token of the image features.

It trains the backbone and, where a config asks for it, chooses the tokens that the 3D head looks at.

Source: Focal-PETR (Wang et al., 2022); StreamPETR `models/dense_heads/focal_head.py`. Differs in: derives
from mmcv's BaseModule, so a checkpoint without version data loads too (mmdet's AnchorFreeHead renames `cls`
to `conv_cls` there); all tokens are written `topk_indexes=None`, not as a permutation; heat maps use `stride`
(upstream 16, its default).

Glossary: B batch, N cameras, M = B N images of H x W px with padding, C channels, T = h w tokens of one
image, K classes, G objects of one image, n tokens of a sample that are chosen, or pairs of a matching.
"""

import random

import torch
from mmcv.cnn import bias_init_with_prob
from mmcv.runner import BaseModule, force_fp32
from mmdet.core import bbox_cxcywh_to_xyxy, bbox_overlaps, bbox_xyxy_to_cxcywh, build_assigner, reduce_mean
from mmdet.models import HEADS, build_loss
from mmdet.models.utils.transformer import inverse_sigmoid
from torch import Tensor, nn

from mmdeploy_ext.models.catalogue import registered_if_named

SIGMOID_EPS = 1e-4
"""Smallest centerness whose logarithm the loss takes; the largest is 1 minus it."""
HYBRID_RATIOS = (0.2, 1.0)
"""Range of the random share of the tokens that `use_hybrid_tokens` keeps."""


def boxes_from_ltrb(centers: Tensor, ltrb: Tensor) -> Tensor:
    """Return boxes (..., 4) cxcywh, clamped to the image, of points and their distances to the edges.

    `centers` (..., 2) are x, y, `ltrb` (..., 4) left, top, right, bottom; all are in parts of the image.
    """
    corners = torch.cat([centers - ltrb[..., :2], centers + ltrb[..., 2:]], dim=-1)
    return bbox_xyxy_to_cxcywh(corners.clamp(0.0, 1.0))


def draw_heatmap(centers: Tensor, bboxes: Tensor, shape: tuple[int, int], stride: int) -> Tensor:
    """Return the map (h, w) of one image: the largest of the objects' Gaussians.

    It is 1 in the cell of each centre that is inside, or less than a cell before the first row or column. The
    radius r is the smallest distance from the centre to an edge in cells, rounded up, at least 1; sigma is a
    sixth of the diameter 2 r + 1; outside the square of the radius there is nothing. Centres are (G, 2) px,
    boxes (G, 4) xyxy px; the stride is in px per cell.
    """
    heatmap = centers.new_zeros(shape)
    if len(centers) == 0:
        return heatmap
    edges = torch.cat([centers - bboxes[:, :2], bboxes[:, 2:] - centers], dim=1)
    radius = (edges.min(dim=1).values / stride).ceil().clamp(min=1.0)[:, None, None]
    cells = (centers / stride).trunc()
    rows = torch.arange(shape[0], device=centers.device)[None, :, None] - cells[:, 1, None, None]
    columns = torch.arange(shape[1], device=centers.device)[None, None, :] - cells[:, 0, None, None]
    sigma = (2 * radius + 1) / 6
    gaussian = torch.exp(-(rows**2 + columns**2) / (2 * sigma**2))
    inside = (rows.abs() <= radius) & (columns.abs() <= radius)
    return torch.where(inside, gaussian, 0.0).amax(dim=0)


@registered_if_named(HEADS)
class FocalHead(BaseModule):
    """2D boxes, centres and classes per token.

    `num_classes` is K, `in_channels` C, a multiple of 32, and `stride` in px per token. In training
    `use_hybrid_tokens` keeps a random part of the tokens, of 0.2 to 1; otherwise the part is `train_ratio` or
    `infer_ratio`, 1 keeps all. With `sync_cls_avg_factor` the loss of classes is divided by the ranks' mean
    of the number of positives, otherwise by its own; `train_cfg` has `assigner2d`, None for a model that is
    not trained; `test_cfg` is not used. The losses are configs; None takes quality focal, Gaussian focal, L1,
    GIoU and L1 losses, in this order.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 256,
        stride: int = 16,
        use_hybrid_tokens: bool = False,
        train_ratio: float = 1.0,
        infer_ratio: float = 1.0,
        sync_cls_avg_factor: bool = False,
        loss_cls2d: dict | None = None,
        loss_centerness: dict | None = None,
        loss_bbox2d: dict | None = None,
        loss_iou2d: dict | None = None,
        loss_centers2d: dict | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.num_classes, self.in_channels, self.stride = num_classes, in_channels, stride
        self.use_hybrid_tokens, self.sync_cls_avg_factor = use_hybrid_tokens, sync_cls_avg_factor
        self.train_ratio, self.infer_ratio = train_ratio, infer_ratio
        self.fp16_enabled = False
        self.loss_cls2d = build_loss(loss_cls2d or dict(type='QualityFocalLoss', use_sigmoid=True))
        self.loss_centerness = build_loss(loss_centerness or dict(type='GaussianFocalLoss'))
        self.loss_bbox2d = build_loss(loss_bbox2d or dict(type='L1Loss', loss_weight=5.0))
        self.loss_iou2d = build_loss(loss_iou2d or dict(type='GIoULoss', loss_weight=2.0))
        self.loss_centers2d = build_loss(loss_centers2d or dict(type='L1Loss', loss_weight=5.0))
        if train_cfg:
            self.assigner2d = build_assigner(train_cfg['assigner2d'])
        self.cls = nn.Conv2d(self.in_channels, self.num_classes, 1)
        self.shared_reg = self._tower()
        self.shared_cls = self._tower()
        self.centerness = nn.Conv2d(self.in_channels, 1, 1)
        self.ltrb = nn.Conv2d(self.in_channels, 4, 1)
        self.center2d = nn.Conv2d(self.in_channels, 2, 1)
        for layer in (self.cls, self.centerness):
            nn.init.constant_(layer.bias, bias_init_with_prob(0.01))

    def _tower(self) -> nn.Sequential:
        conv = nn.Conv2d(self.in_channels, self.in_channels, 3, padding=1)
        return nn.Sequential(conv, nn.GroupNorm(32, self.in_channels), nn.ReLU())

    def forward(self, location: Tensor, img_feats: Tensor, **data: object) -> dict[str, Tensor | None]:
        """Predict on every token; all other data of a frame are ignored.

        Locations are (M, h, w, 2) or what broadcasts to it: token centres (x, y) in parts of the image;
        features (B, N, C, h, w).

        Returns:
            `enc_cls_scores` (M, T, K) logits, `enc_bbox_preds` (M, T, 4) cxcywh and `pred_centers2d`
            (M, T, 2) in parts of the image, `centerness` (M, T, 1) logits, `topk_indexes` (B, n, 1) into
            the N T tokens of a sample, best first, or None for all.
        """
        x = img_feats.flatten(0, 1)
        cls_feat, reg_feat = self.shared_cls(x), self.shared_reg(x)
        logits, centerness = _tokens(self.cls(cls_feat)), _tokens(self.centerness(cls_feat))
        centers = location.expand(len(x), *x.shape[-2:], 2).flatten(1, 2)
        boxes = boxes_from_ltrb(centers, _tokens(self.ltrb(reg_feat)).sigmoid())
        centers2d = (inverse_sigmoid(centers) + _tokens(self.center2d(reg_feat))).sigmoid()
        topk = self._choose_tokens(logits.detach(), centerness.detach(), img_feats.shape[0])
        predicted = dict(enc_cls_scores=logits, enc_bbox_preds=boxes, pred_centers2d=centers2d)
        return dict(predicted, centerness=centerness, topk_indexes=topk)

    def _choose_tokens(self, logits: Tensor, centerness: Tensor, batch_size: int) -> Tensor | None:
        """Return the indices (B, n, 1) of the tokens with the largest class score times centerness."""
        ratio = self.infer_ratio
        if self.training:
            ratio = random.uniform(*HYBRID_RATIOS) if self.use_hybrid_tokens else self.train_ratio
        weight = logits.amax(dim=2, keepdim=True).sigmoid() * centerness.sigmoid()
        weight = weight.view(batch_size, -1, 1)
        count = int(weight.shape[1] * ratio)
        return None if count >= weight.shape[1] else weight.topk(count, dim=1).indices

    @force_fp32(apply_to=('preds_dicts',))
    def loss(
        self,
        gt_bboxes2d_list: list,
        gt_labels2d_list: list,
        centers2d: list,
        depths: list,
        preds_dicts: dict,
        img_metas: list[dict],
        gt_bboxes_ignore: None = None,
    ) -> dict[str, Tensor]:
        """Return the losses of one frame by name.

        They are `enc_loss_cls`, `enc_loss_bbox`, `enc_loss_iou`, `centers2d_losses` and `centerness_losses`.
        The annotations are lists [B][N]: boxes (G, 4) xyxy px, labels (G,), centres (G, 2) px; `depths` and
        `gt_bboxes_ignore` are unused. `preds_dicts` is what `forward` returned. `pad_shape[0]` of the first
        meta is every image's (H, W, 3).

        Raises:
            ValueError: the annotations are not those of M images.
        """
        images = [
            [value for sample in values for value in sample]
            for values in (gt_bboxes2d_list, gt_labels2d_list, centers2d)
        ]
        preds = {key: value.float() for key, value in preds_dicts.items() if key != 'topk_indexes'}
        num_images = len(preds['centerness'])
        if any(len(values) != num_images for values in images):
            got = ', '.join(str(len(values)) for values in images)
            raise ValueError(
                f'2D annotations: got boxes, labels, centres of {got} images, expected {num_images} '
                '(samples x cameras); check the data set that the config names'
            )
        return self._losses(preds, images, img_metas[0]['pad_shape'][0])

    def _losses(
        self, preds: dict[str, Tensor], truth: list[list[Tensor]], pad_shape: tuple[int, int, int]
    ) -> dict[str, Tensor]:
        """Return the five losses; `truth` has lists of M tensors: boxes, labels and centres, see `loss`."""
        (height, width), (gt_bboxes, gt_labels, gt_centers) = pad_shape[:2], truth
        logits, boxes, centers = preds['enc_cls_scores'], preds['enc_bbox_preds'], preds['pred_centers2d']
        image, token, gt = self._match(preds, truth, pad_shape)
        size = boxes.new_tensor([width, height, width, height])
        pos_boxes, pos_centers = boxes[image, token], centers[image, token]
        target_px, target_centers = torch.cat(gt_bboxes).to(boxes)[gt], torch.cat(gt_centers).to(boxes)[gt]
        boxes_px = bbox_cxcywh_to_xyxy(pos_boxes) * size
        labels = torch.full(logits.shape[:2], self.num_classes, dtype=torch.long, device=logits.device)
        labels[image, token] = torch.cat(gt_labels).to(labels)[gt]
        quality = logits.new_zeros(logits.shape[:2])
        quality[image, token] = bbox_overlaps(target_px, boxes_px.detach(), is_aligned=True)
        count = logits.new_tensor(float(len(gt)))
        mean_count = reduce_mean(count.clone()).clamp(min=1).item()
        cls_count = reduce_mean(count.clone()) if self.sync_cls_avg_factor else count
        target = (labels.flatten(), quality.flatten())
        ones, local = logits.new_ones(labels.numel()), max(len(gt), 1)
        heatmaps = [
            draw_heatmap(
                centers_of_image.to(boxes),
                bboxes_of_image.to(boxes),
                (height // self.stride, width // self.stride),
                self.stride,
            )
            for centers_of_image, bboxes_of_image in zip(gt_centers, gt_bboxes, strict=True)
        ]
        centerness = preds['centerness'].sigmoid().clamp(SIGMOID_EPS, 1 - SIGMOID_EPS)
        targets, heat = bbox_xyxy_to_cxcywh(target_px / size), torch.stack(heatmaps).view_as(centerness)
        cls_factor = cls_count.clamp(min=1).item()
        return dict(
            enc_loss_cls=self.loss_cls2d(logits.flatten(0, 1), target, ones, avg_factor=cls_factor),
            enc_loss_bbox=self.loss_bbox2d(pos_boxes, targets, avg_factor=mean_count),
            enc_loss_iou=self.loss_iou2d(boxes_px, target_px, avg_factor=local),
            centers2d_losses=self.loss_centers2d(
                pos_centers, target_centers / size[:2], avg_factor=mean_count
            ),
            centerness_losses=self.loss_centerness(centerness, heat, avg_factor=mean_count),
        )

    def _match(
        self, preds: dict[str, Tensor], truth: list[list[Tensor]], pad_shape: tuple[int, int, int]
    ) -> Tensor:
        """Return image, token and ground truth (counted through all images) of every matched pair, (3, n)."""
        device, first = preds['centerness'].device, 0
        pairs = [torch.empty(3, 0, dtype=torch.long, device=device)]
        for i, truth_of_image in enumerate(zip(*truth, strict=True)):
            if len(truth_of_image[0]):
                names = ('enc_bbox_preds', 'enc_cls_scores', 'pred_centers2d')
                predicted = (preds[name][i].detach() for name in names)
                annotations = (values.to(device) for values in truth_of_image)
                meta = {'pad_shape': pad_shape}
                inds = self.assigner2d.assign(*predicted, *annotations, meta).gt_inds
                tokens = inds.nonzero().squeeze(1)
                pairs.append(torch.stack([torch.full_like(tokens, i), tokens, inds[tokens] - 1 + first]))
            first += len(truth_of_image[0])
        return torch.cat(pairs, dim=1)


def _tokens(x: Tensor) -> Tensor:
    """Return a map (M, channels, h, w) as tokens (M, T, channels)."""
    return x.flatten(2).transpose(1, 2)
