import numpy as np
import torch
from torch import nn

from circles.model import STRIDE
from circles.runtime import Circles
from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.contract.stages import Stage
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.images import ImageFamily


class Network(nn.Module):
    def __init__(self, model, radius):
        super().__init__()
        self.model, self.logarithm = model, radius == 'log'

    def forward(self, images):
        heat, radius = self.model(images)
        return heat, radius if self.logarithm else radius.exp()


def batch_of(images):
    return torch.from_numpy(np.stack([image.tensor for image in images]))


class CircleFamily(ImageFamily):
    name, task, forms = 'circles', 'circles.task', ('raw',)

    def claims(self, cfg):
        return Claim.DETECTOR if cfg.model.type == 'CircleNet' else Claim.NO

    def spec(self, model, options):
        dynamic, fixed = ('B', 3, 'H', 'W'), (options.batch, 3, options.height, options.width)
        axes = dynamic if options.dynamic else fixed
        cells = (
            (axes[0], 'h', 'w') if options.dynamic else (axes[0], *(-(-side // STRIDE) for side in axes[2:]))
        )
        images = TensorSpec('images', 'float32', axes, 'normalised pictures', smallest=32)
        heat = TensorSpec('heat', 'float32', (cells[0], model.num_classes, *cells[1:]), 'scores')
        return GraphSpec(
            'circles/raw', (images,), (heat, TensorSpec('radius', 'float32', (cells[0], 1, *cells[1:])))
        )

    def stages(self, model, options, fold=True):
        return [Stage('network', Network(model, options.radius), ('images',), ('heat', 'radius'))]

    def feeds(self, images, rescale):
        scale = dict(scale_factor=np.stack([image.scale_factor for image in images])) if rescale else {}
        return dict(images=batch_of(images).numpy(), **scale)

    def reference_tensors(self, model, feeds, form, radius, **others):
        with torch.no_grad():
            heat, logarithm = model(torch.from_numpy(feeds['images']))
        return dict(heat=heat.numpy(), radius=(logarithm if radius == 'log' else logarithm.exp()).numpy())

    def reference_detections(self, model, images, rescale):
        with torch.no_grad():
            found = [[part.numpy() for part in parts] for parts in model.detect(batch_of(images))]
        scales = [image.scale_factor[:3] if rescale else 1 for image in images]
        return [
            Circles(circles / scale, *rest) for (circles, *rest), scale in zip(found, scales, strict=True)
        ]

    def num_classes(self, model):
        return model.num_classes

    def postprocess_facts(self, model):
        return dict(count=model.count, stride=STRIDE)
