import torch
from mmdet.models.builder import DETECTORS
from torch import nn

STRIDE = 4


@DETECTORS.register_module()
class CircleNet(nn.Module):
    """Heat of every class, and the logarithm of a radius in pixels, per cell of 4 x 4 pixels."""

    def __init__(self, num_classes, count, test_cfg=None, train_cfg=None):
        super().__init__()
        self.num_classes, self.count = num_classes, count
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.heat, self.radius = nn.Conv2d(8, num_classes, 1), nn.Conv2d(8, 1, 1)

    def forward(self, images):
        features = self.body(images)
        return self.heat(features).sigmoid(), self.radius(features)

    def detect(self, images):
        """Return circles (x, y, r), scores and labels of each image, the best `count` of all classes."""
        heat, radius = self(images)
        scores, cells = heat.flatten(1).topk(self.count)
        labels, cells = cells // heat[0, 0].numel(), cells % heat[0, 0].numel()
        x, y = cells % heat.shape[3] * STRIDE, cells // heat.shape[3] * STRIDE
        circles = torch.stack([x, y, radius.flatten(1).gather(1, cells).exp()], -1)
        return list(zip(circles, scores, labels, strict=True))
