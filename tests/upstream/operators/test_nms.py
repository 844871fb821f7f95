"""Batched NMS: PyTorch, ONNX Runtime and the slow obvious reference agree."""

import numpy as np
import onnxruntime
import pytest
import torch
from mmcv import ops
from torch import nn

from mmdeploy_ext.exporting import export
from mmdeploy_ext.runtime.detections import nms as numpy_nms
from mmdeploy_ext.spec.options import IMAGE, Options
from mmdeploy_ext.spec.tensors import GraphSpec, Stage, TensorSpec
from mmdeploy_ext.upstream.operators.nms import batched_nms, class_offsets

MANY = 2**31 - 1


class Nms(nn.Module):
    """The operator alone."""

    def __init__(self, iou_threshold, max_output):
        super().__init__()
        self.settings = iou_threshold, max_output

    def forward(self, bboxes, scores):
        return batched_nms(bboxes, scores, *self.settings)


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inside = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside
    return inside / union if union > 0 else 0.0


def slow_nms(bboxes, scores, iou_threshold, max_output):
    """Rows (image, 0, box) as they are chosen: best score first, no overlap with a chosen one."""
    rows = []
    for image in range(len(bboxes)):
        chosen = []
        for index in np.argsort(-scores[image, 0], kind='stable'):
            if scores[image, 0, index] <= -0.5 or len(chosen) == max_output:
                continue
            if all(iou(bboxes[image, index], bboxes[image, kept]) <= iou_threshold for kept in chosen):
                chosen.append(index)
        rows += [(image, 0, index) for index in chosen]
    return sorted(rows)


def boxes(seed, batch, count, dead=0.3):
    """Return boxes (B, N, 4) and scores (B, 1, N), all different; a share of them is no candidate."""
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, 60, (batch, count, 2)), rng.uniform(1, 40, (batch, count, 2))
    scores = rng.permuted(np.tile(np.arange(1, count + 1) / (count + 1), (batch, 1, 1)), axis=2)
    scores[rng.random(scores.shape) < dead] = -1
    return np.concatenate([corner, corner + size], 2).astype(np.float32), scores.astype(np.float32)


def session_for(iou_threshold, max_output, opset=17):
    spec = GraphSpec(
        'nms',
        (TensorSpec('b', 'float32', ('B', 'N', 4)), TensorSpec('s', 'float32', ('B', 1, 'N'))),
        (TensorSpec('kept', 'int64', ('n', 3)),),
    )
    example = {name: torch.from_numpy(value) for name, value in zip('bs', boxes(0, 1, 6), strict=True)}
    stage = Stage('nms', Nms(iou_threshold, max_output), ('b', 's'), ('kept',))
    model = export.export_stages([stage], example, spec, Options(IMAGE, opset=opset, dynamic=True))
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])


def as_rows(array):
    assert array.dtype == np.int64
    assert array.ndim == 2
    assert array.shape[1] == 3
    return sorted(map(tuple, array.tolist()))


@pytest.mark.parametrize(('iou_threshold', 'max_output', 'opset'), [(0.5, MANY, 11), (0.2, 3, 20)])
def test_torch_and_onnx_equal_the_slow_reference(iou_threshold, max_output, opset):
    session = session_for(iou_threshold, max_output, opset)
    for batch, count, dead in [(1, 20, 0.3), (1, 40, 0.0), (3, 40, 0.3), (2, 1, 0.0), (2, 5, 2.0)]:
        bboxes, scores = boxes(batch, batch, count, dead)
        wanted = slow_nms(bboxes, scores, iou_threshold, max_output)
        if not dead and max_output == MANY:
            kept = numpy_nms(bboxes[0], scores[0, 0], iou_threshold)
            assert sorted(kept.tolist()) == [row[2] for row in wanted if not row[0]]
            assert (np.diff(scores[0, 0][kept]) < 0).all()
        eager = Nms(iou_threshold, max_output)(torch.from_numpy(bboxes), torch.from_numpy(scores))
        assert as_rows(eager.numpy()) == wanted
        assert as_rows(session.run(None, {'b': bboxes, 's': scores})[0]) == wanted


def test_class_offsets_are_those_of_mmcv_bit_for_bit():
    bboxes, scores = boxes(7, 1, 30, dead=0.0)
    bboxes -= np.float32(500)
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 5, 30))
    boxes_t, scores_t = torch.from_numpy(bboxes), torch.from_numpy(scores)
    shifted = class_offsets(boxes_t, labels[None], torch.ones(1, 30, dtype=torch.bool))
    offsets = labels.to(boxes_t) * (boxes_t.max() + torch.tensor(1.0))  # mmcv 1.7.2, batched_nms
    torch.testing.assert_close(shifted[0], boxes_t[0] + offsets[:, None], rtol=0, atol=0)
    wanted = ops.batched_nms(boxes_t[0], scores_t[0, 0], labels, dict(type='nms', iou_threshold=0.4))[1]
    kept = Nms(0.4, MANY)(shifted, scores_t)[:, 2]
    assert sorted(kept.tolist()) == sorted(wanted.tolist())
