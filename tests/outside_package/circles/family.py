import numpy as np
import torch
from torch import nn

from circles.model import STRIDE
from circles.runtime import CircleFacts, Circles
from mmdeploy_ext.contract.spec import GraphSpec, Stage, TensorSpec
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.images import ImageFamily
from mmdeploy_ext.families.reference import ImageReference


class Network(nn.Module):
    def __init__(self, model, radius):
        super().__init__()
        self.model, self.logarithm = model, radius == 'log'

    def forward(self, images):
        heat, radius = self.model(images)
        return heat, radius if self.logarithm else radius.exp()


class CircleReference(ImageReference):
    def tensors(self, feeds, form, radius, **others):
        with torch.no_grad():
            heat, logarithm = (tensor.numpy() for tensor in self.model(torch.from_numpy(feeds['images'])))
        return dict(heat=heat, radius=logarithm if radius == 'log' else np.exp(logarithm))

    def results(self, images, rescale):
        with torch.no_grad():
            detections = self.model.detect(torch.from_numpy(np.stack([image.tensor for image in images])))
        results = [Circles(*(tensor.numpy() for tensor in parts)) for parts in detections]
        pairs = zip(results, images, strict=True)
        return [circles.scaled(image.scale_factor) if rescale else circles for circles, image in pairs]


class CircleFamily(ImageFamily):
    name, task, forms = 'circles', 'circles.task', ('raw',)
    reference = CircleReference

    def claims(self, cfg):
        return Claim.DETECTOR if cfg.model.type == 'CircleNet' else Claim.NO

    def spec(self, model, options):
        batch, height, width = options.batch, options.height, options.width
        cells = -(-height // STRIDE), -(-width // STRIDE)
        if options.dynamic:
            batch, height, width, cells = 'B', 'H', 'W', ('h', 'w')
        images = TensorSpec(
            'images', 'float32', (batch, 3, height, width), 'normalised pictures', smallest=32
        )
        heat = TensorSpec('heat', 'float32', (batch, model.num_classes, *cells), 'scores of each class')
        radius = TensorSpec('radius', 'float32', (batch, 1, *cells), options.radius)
        return GraphSpec('circles/raw', (images,), (heat, radius))

    def stages(self, model, options):
        return [Stage('network', Network(model, options.radius), ('images',), ('heat', 'radius'))]

    def facts(self, model):
        return CircleFacts(model.count, STRIDE)
