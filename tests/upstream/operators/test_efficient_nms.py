"""EfficientNMS_TRT in PyTorch and in numpy suppress the same boxes."""

import numpy as np
import pytest
import torch

from mmdeploy_ext.engines.plugins import suppress
from mmdeploy_ext.upstream.operators.nms import EFFICIENT_NMS


@pytest.mark.parametrize('class_agnostic', [False, True])
@pytest.mark.parametrize('most', [7, 300])
def test_both_forms_keep_the_same_boxes(class_agnostic, most):
    """Compares images of 200 boxes, of which one has no score above the threshold."""
    random = torch.Generator().manual_seed(0)
    corners = torch.rand(3, 200, 2, generator=random) * 50
    boxes = torch.cat([corners, corners + 5 + 20 * torch.rand(3, 200, 2, generator=random)], dim=2)
    scores = torch.rand(3, 200, 1, generator=random) * torch.tensor([1, 1, 0.001])[:, None, None]
    labels = torch.randint(4, (3, 200, 1), generator=random)
    scores = torch.where(labels == torch.arange(4), scores, 0.0)
    found = [tensor.numpy() for tensor in EFFICIENT_NMS(boxes, scores, 0.5, most, class_agnostic)]
    plain = EFFICIENT_NMS.plugin.constants
    expected = suppress(
        boxes.numpy(),
        scores.numpy(),
        iou_threshold=0.5,
        max_output_boxes=most,
        class_agnostic=class_agnostic,
        **plain,
    )
    assert (expected[0][:2] >= min(most, 40)).all() and expected[0][2] == 0
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and np.array_equal(one, other)
