import numpy as np
import torch
from torch import nn

from mmdeploy_ext.families.images import Claim, GraphSpec, ImageFamily, ImageReference, Stage, TensorSpec


class Network(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, img_shape, scale_factor):
        head = self.model.bbox_head
        boxes, scores, labels = head.decode(*head(self.model.extract_feat(images)), img_shape)
        return torch.cat([boxes / scale_factor[:, None], scores[..., None]], 2), labels


class GaugeFamily(ImageFamily):
    name, task, forms = 'gauges', 'bbox2d', ('full',)
    untraced = ('simple_test',)
    reference = ImageReference

    def claims(self, cfg):
        return Claim.HEAD if cfg.model.get('bbox_head', {}).get('type') == 'GaugeHead' else Claim.NO

    def spec(self, model, options):
        batch, height, width = options.batch, options.height, options.width
        if options.dynamic:
            batch, height, width = 'B', 'H', 'W'
        classes = model.bbox_head.num_classes
        images = TensorSpec('images', 'float32', (batch, 3, height, width), 'normalised', smallest=32)
        sizes = TensorSpec('img_shape', 'float32', (batch, 2), 'h w of the images without padding', 'pixel')
        ratios = TensorSpec('scale_factor', 'float32', (batch, 4), 'w h w h, input / original', default=1.0)
        dets = TensorSpec('dets', 'float32', (batch, classes, 5), 'x1 y1 x2 y2 score', compare='detections')
        labels = TensorSpec('labels', 'int64', (batch, classes), 'class', compare='detections')
        return GraphSpec('gauges/full', (images, sizes, ratios), (dets, labels))

    def stages(self, model, options):
        inputs = 'images', 'img_shape', 'scale_factor'
        return [Stage('network', Network(model), inputs, ('dets', 'labels'))]

    def feeds(self, images, rescale):
        sizes = np.float32([image.img_shape for image in images])
        return dict(super().feeds(images, rescale), img_shape=sizes)
