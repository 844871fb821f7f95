"""Boxes as cxcywh and as xyxy. Nothing here scales them: shares of an image stay shares, pixels pixels."""

import torch


def cxcywh_to_xyxy(boxes: torch.Tensor) -> torch.Tensor:
    """Return (..., 4) x1 y1 x2 y2 of centre and size."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - 0.5 * size, centre + 0.5 * size], -1)


def xyxy_to_cxcywh(boxes: torch.Tensor) -> torch.Tensor:
    """Return (..., 4) centre and size of x1 y1 x2 y2."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def paired_iou(boxes: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return IoU and generalised IoU (...) of boxes and targets (..., 4) xyxy, which are broadcast."""
    sides = torch.minimum(boxes[..., 2:], targets[..., 2:]) - torch.maximum(boxes[..., :2], targets[..., :2])
    hull = torch.maximum(boxes[..., 2:], targets[..., 2:]) - torch.minimum(boxes[..., :2], targets[..., :2])
    overlap, hull_area = sides.clamp(min=0).prod(-1), hull.clamp(min=0).prod(-1)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1) + (targets[..., 2:] - targets[..., :2]).prod(-1)
    union = (areas - overlap).clamp(min=1e-9)
    iou = overlap / union
    return iou, iou - (hull_area - union) / hull_area.clamp(min=1e-9)
