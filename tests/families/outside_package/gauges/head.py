import torch
from mmdet.models.builder import HEADS
from torch import nn


@HEADS.register_module()
class GaugeHead(nn.Module):
    """A panel has one gauge of each class: its box is the mean of all cells' boxes, weighted by softmax."""

    def __init__(self, num_classes, in_channels, stride, train_cfg=None, test_cfg=None):
        super().__init__()
        self.num_classes, self.stride = num_classes, stride
        self.cls_score = nn.Conv2d(in_channels, num_classes, 1)
        self.bbox_pred = nn.Conv2d(in_channels, 4, 1)

    def forward(self, maps):
        return self.cls_score(maps[-1]), self.bbox_pred(maps[-1])

    def decode(self, logits, reach, img_shape):
        """Return boxes (B, C, 4) xyxy in pixels, scores (B, C) and labels (B, C), the best first.

        `img_shape` (B, 2) is h, w of the images without padding; boxes are clipped to it.
        """
        height, width = logits.shape[2:]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
        centres = torch.stack([x, y], 2).flatten(0, 1).to(logits) * self.stride
        sides = reach.flatten(2).transpose(1, 2).exp() * self.stride
        boxes = torch.cat([centres - sides[..., :2], centres + sides[..., 2:]], 2)
        logits = logits.flatten(2)
        boxes = logits.softmax(2) @ boxes
        boxes = boxes.clamp(min=0).minimum(img_shape.flip(1).repeat(1, 2)[:, None])
        scores, labels = logits.amax(2).sigmoid().sort(1, descending=True)
        return boxes.gather(1, labels[..., None].expand(-1, -1, 4)), scores, labels

    def simple_test(self, maps, img_metas, rescale=False):
        sizes = maps[-1].new_tensor([meta['img_shape'][:2] for meta in img_metas])
        boxes, scores, labels = self.decode(*self(maps), sizes)
        if rescale:
            ratios = torch.stack([boxes.new_tensor(meta['scale_factor']) for meta in img_metas])
            boxes = boxes / ratios[:, None]
        return list(zip(torch.cat([boxes, scores[..., None]], 2), labels, strict=True))
