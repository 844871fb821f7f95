"""Dense heads and a coder as users have them: none is known by its code."""

import torch
from mmcv.cnn import DepthwiseSeparableConvModule
from mmdet.core import distance2bbox, multiclass_nms
from mmdet.core.bbox.builder import BBOX_CODERS
from mmdet.models.builder import HEADS
from mmdet.models.dense_heads import GFLHead, TOODHead, YOLOV3Head
from torch import nn
from torch.onnx import is_in_onnx_export


@BBOX_CODERS.register_module()
class LogBoxCoder:
    """Logarithms of the distances of the sides from the anchor's middle, over its size."""

    def __init__(self, clip_border=True):
        self.clip_border = clip_border

    def decode(self, anchors, outputs, max_shape=None):
        middle, size = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
        return distance2bbox(middle, outputs.exp() * size.repeat(1, 2) / 2, max_shape)


@HEADS.register_module()
class PointGFLHead(GFLHead):
    """As PicoDet's: points, depthwise towers per level, one layer for classes and sides."""

    def __init__(self, *args, strides, **kwargs):
        points = dict(type='MlvlPointGenerator', strides=strides, offset=0.5)
        super().__init__(*args, anchor_generator=points, **kwargs)

    def _init_layers(self):
        self.towers, self.gfl_cls = nn.ModuleList(), nn.ModuleList()
        width, self.columns = self.feat_channels, (self.cls_out_channels, 4 * (self.reg_max + 1))
        for _ in self.prior_generator.strides:
            convolutions = [DepthwiseSeparableConvModule(self.in_channels, width, 5, padding=2)]
            for _ in range(self.stacked_convs - 1):
                convolutions.append(DepthwiseSeparableConvModule(width, width, 5, padding=2))
            self.towers.append(nn.Sequential(*convolutions))
            self.gfl_cls.append(nn.Conv2d(width, sum(self.columns), 1))

    def forward(self, feats):
        levels = zip(self.towers, self.gfl_cls, feats, strict=True)
        outputs = [layer(tower(feature)).split(self.columns, 1) for tower, layer, feature in levels]
        return tuple(map(list, zip(*outputs, strict=True)))

    def anchor_center(self, points):
        return points

    def get_bboxes(self, cls_scores, bbox_preds, img_metas, cfg=None, rescale=False):
        cfg, results = cfg or self.test_cfg, []
        sizes = [level.shape[-2:] for level in cls_scores]
        priors = self.prior_generator.grid_priors(sizes, cls_scores[0].dtype, cls_scores[0].device)
        for image, meta in enumerate(img_metas):
            boxes, scores = [], []
            levels = zip(self.prior_generator.strides, priors, cls_scores, bbox_preds, strict=True)
            for stride, points, classes, sides in levels:
                level_scores = classes[image].permute(1, 2, 0).reshape(-1, self.cls_out_channels).sigmoid()
                distances = self.integral(sides[image].permute(1, 2, 0)) * stride[0]
                best = level_scores.max(1).values.topk(min(cfg.nms_pre, len(points))).indices
                boxes.append(distance2bbox(points[best], distances[best], meta['img_shape']))
                scores.append(level_scores[best])
            boxes, scores = torch.cat(boxes), torch.cat(scores)
            if rescale:
                boxes = boxes / boxes.new_tensor(meta['scale_factor'])
            scores = torch.cat([scores, scores.new_zeros(len(scores), 1)], 1)
            results.append(multiclass_nms(boxes, scores, cfg.score_thr, cfg.nms, cfg.max_per_img))
        return results


@HEADS.register_module()
class PicoHead(PointGFLHead):
    """As PicoDet's: an export gets the scores and distances of all levels in one tensor each."""

    def forward(self, feats):
        outputs = super().forward(feats)
        if torch.onnx.is_in_onnx_export():
            scores, sides = (torch.cat([level.flatten(2) for level in kind], 2) for kind in outputs)
            return scores.sigmoid().permute(0, 2, 1), sides.permute(0, 2, 1)
        return outputs


@HEADS.register_module()
class ScrfdHead(GFLHead):
    """As SCRFD's: an export gets the scores of a level as rows, by a function that the file imported."""

    def forward_single(self, x, scale):
        scores, sides = super().forward_single(x, scale)
        if is_in_onnx_export():
            columns = ((scores.sigmoid(), self.cls_out_channels), (sides, 4 * (self.reg_max + 1)))
            return tuple(one.permute(0, 2, 3, 1).reshape(len(one), -1, count) for one, count in columns)
        return scores, sides


class Priors:
    """The selection of mmdet 2.17: all classes of the best priors of a level, whatever the version says."""

    def get_bboxes(self, cls_scores, bbox_preds, factors=None, img_metas=None, cfg=None, rescale=False):
        cfg, results = cfg or self.test_cfg, []
        sizes = [level.shape[-2:] for level in cls_scores]
        generator = self.prior_generator
        priors = generator.grid_priors(sizes, cls_scores[0].dtype, cls_scores[0].device)
        for image, meta in enumerate(img_metas):
            boxes, scores, weights = [], [], []
            for level, anchors in enumerate(priors):
                scores_of_level = cls_scores[level][image].permute(1, 2, 0).reshape(-1, self.num_classes)
                scores_of_level = scores_of_level.sigmoid()
                rank, factor = scores_of_level, None
                if factors is not None:
                    factor = factors[level][image].permute(1, 2, 0).reshape(-1).sigmoid()
                    rank = scores_of_level * factor[:, None]
                best = slice(None)
                if 0 < cfg.nms_pre < len(anchors):
                    best = rank.max(1).values.topk(cfg.nms_pre).indices
                outputs = bbox_preds[level][image].permute(1, 2, 0)
                boxes.append(self.boxes(level, anchors, outputs, meta['img_shape'])[best])
                scores.append(scores_of_level[best])
                weights.append(None if factor is None else factor[best])
            boxes, scores = torch.cat(boxes), torch.cat(scores)
            weights = None if factors is None else torch.cat(weights)
            if rescale:
                boxes = boxes / boxes.new_tensor(meta['scale_factor'])
            scores = torch.cat([scores, scores.new_zeros(len(scores), 1)], 1)
            results.append(
                multiclass_nms(boxes, scores, cfg.score_thr, cfg.nms, cfg.max_per_img, score_factors=weights)
            )
        return results

    def boxes(self, level, anchors, outputs, img_shape):
        return self.bbox_coder.decode(anchors, outputs.reshape(-1, 4), max_shape=img_shape)


class GFLHeadOf217(Priors, GFLHead):
    def boxes(self, level, anchors, outputs, img_shape):
        distances = self.integral(outputs) * self.prior_generator.strides[level][0]
        return distance2bbox(self.anchor_center(anchors), distances, img_shape)


class YOLOV3HeadOf216(YOLOV3Head):
    """Keeps the priors of a level with the best objectness."""

    def get_bboxes(self, pred_maps, img_metas, cfg=None, rescale=False):
        cfg, results = cfg or self.test_cfg, []
        priors = self.prior_generator.grid_priors([level.shape[-2:] for level in pred_maps], device='cpu')
        for image, meta in enumerate(img_metas):
            boxes, scores, objectness = [], [], []
            for level, anchors in enumerate(priors):
                pred = pred_maps[level][image].permute(1, 2, 0).reshape(-1, self.num_attrib)
                places = torch.cat([pred[:, :2].sigmoid(), pred[:, 2:4]], 1)
                decoded = self.bbox_coder.decode(anchors, places, self.featmap_strides[level])
                confidence = pred[:, 4].sigmoid()
                best = confidence.topk(min(cfg.nms_pre, len(anchors))).indices
                best = best[confidence[best] >= cfg.conf_thr]
                boxes.append(decoded[best])
                scores.append(pred[best, 5:].sigmoid())
                objectness.append(confidence[best])
            boxes, scores = torch.cat(boxes), torch.cat(scores)
            if rescale:
                boxes = boxes / boxes.new_tensor(meta['scale_factor'])
            scores = torch.cat([scores, scores.new_zeros(len(scores), 1)], 1)
            limits = cfg.score_thr, cfg.nms, cfg.max_per_img
            results.append(multiclass_nms(boxes, scores, *limits, score_factors=torch.cat(objectness)))
        return results


class TOODHeadThatClips(TOODHead):
    """That of its own repository."""

    def _get_bboxes_single(self, scores, boxes, factors, priors, img_meta, *args, **kwargs):
        self.limits = torch.tensor([img_meta['img_shape'][1], img_meta['img_shape'][0]] * 2)
        return super()._get_bboxes_single(scores, boxes, factors, priors, img_meta, *args, **kwargs)

    def _bbox_post_process(self, scores, labels, boxes, *args, **kwargs):
        clipped = [torch.minimum(level.clamp(min=0), self.limits) for level in boxes]
        return super()._bbox_post_process(scores, labels, clipped, *args, **kwargs)
